"""AdaFac-MLP's update as a task's network: reverse mode goes through it, many updates deep.

Source: arXiv 2203.11860 and its public code. The rule is that of `celo2.zoo.adafac_mlp`, whose constants
these are, and a test holds the two together. There the weights are finished, or theta is learned without
gradients, and no array has a feature axis. Here a gradient comes back through every update: the tensors
lie end to end in one vector of P numbers and the channels are stacked, so that an update is a few
operations on `(channels, P)` whatever the number of tensors.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.constants import FACTOR_FLOOR, FACTORED_EPS, RSQRT_EPS
from celo2.jax.dimensions import Axes, make_axes
from celo2.zoo.adafac_mlp import TIMES, learned_decays
from celo2.zoo.features import NORM_EPS, PRE_STEP, RMS_EPS
from celo2.zoo.lstm import Theta
from celo2.zoo.rule import STANDARD
from celo2.zoo.specs import MLP12


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tensors end to end in one vector.

    Attributes:
        shapes: Of the tensors, in order.
    """

    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor; P is their sum."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def member(self) -> np.ndarray:
        """Which tensor a number belongs to: `(P, tensors)`, zeros and a one in each row."""
        return np.repeat(np.eye(len(self.shapes), dtype=np.float32), self.sizes, axis=0)

    def split(self, vector: Array) -> list[Array]:
        """`(..., P)` → `(..., *shape)` for each tensor."""
        parts = jnp.split(vector, list(itertools.accumulate(self.sizes))[:-1], axis=-1)
        return [
            part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def join(self, tensors: Sequence[Array], leading: tuple[int, ...] = ()) -> Array:
        """`leading` and a shape that broadcasts to the tensor's, each → `(*leading, P)`."""
        full = [
            jnp.broadcast_to(x, (*leading, *shape)) for x, shape in zip(tensors, self.shapes, strict=True)
        ]
        return jnp.concatenate([tensor.reshape(*leading, -1) for tensor in full], axis=-1)


class RuleState(NamedTuple):
    """What the rule remembers.

    Attributes:
        momentum: `(3, P)`.
        rms: `(1, P)`.
        second: For each tensor, means of the squared gradient over its largest and over its second
            largest axis, which stay with length 1 behind the three decays; the square itself for rank < 2.
        count: Updates so far, a scalar of theta's dtype.
    """

    momentum: Array
    rms: Array
    second: list[tuple[Array, ...]]
    count: Array  # type: ignore[assignment]  # tuple.count is not meant


class _Decays(NamedTuple):
    momentum: Array
    rms: Array
    adafactor: Array


def init_state(layout: Layout, dtype: jnp.dtype) -> RuleState:
    """Everything at zero."""
    num_momenta, num_rms, num_factored = (len(decays) for decays in STANDARD)
    size = sum(layout.sizes)
    return RuleState(
        jnp.zeros((num_momenta, size), dtype),
        jnp.zeros((num_rms, size), dtype),
        [
            tuple(jnp.zeros((num_factored, *square.shape), dtype) for square in _reduce(jnp.zeros(shape)))
            for shape in layout.shapes
        ],
        jnp.zeros((), dtype),
    )


def update(
    theta: Theta, layout: Layout, state: RuleState, grad: Array, param: Array
) -> tuple[Array, RuleState]:
    """One update of all tensors.

    Args:
        theta: The meta-parameters by name, as of `celo2.zoo.init_theta("adafac_mlp", key)`.
        layout: Of the tensors.
        state: Of the updates before.
        grad: `(P,)`.
        param: `(P,)`.

    Returns:
        The new parameters, `(P,)`, and the new state.
    """
    decays = _Decays(*(jnp.stack(group) for group in learned_decays(theta, param.dtype)))
    state = _accumulate(decays, layout, state, grad)
    channels = _normalize(_compute_channels(layout, state, grad, param), layout)
    direction, magnitude = _compute_network(theta, channels, state.count)
    change = PRE_STEP * direction * jnp.exp(MLP12.exp_mult * magnitude)
    return param - change, state._replace(count=state.count + 1.0)


def _accumulate(decays: _Decays, layout: Layout, state: RuleState, grad: Array) -> RuleState:
    """No bias correction: the averages start at zero and stay too small for a while."""
    second = [
        tuple(_average(decays.adafactor, old, new) for old, new in zip(olds, _reduce(square), strict=True))
        for olds, square in zip(state.second, layout.split(grad * grad + FACTORED_EPS), strict=True)
    ]
    momentum = _average(decays.momentum, state.momentum, grad)
    return state._replace(momentum=momentum, rms=_average(decays.rms, state.rms, grad * grad), second=second)


def _average(decays: Array, old: Array, new: Array) -> Array:
    """`β old + (1 - β) new` for each decay: `(D, ...)`, new being `(...)`."""
    decays = jnp.expand_dims(decays, tuple(range(1, old.ndim)))
    return decays * old + (1.0 - decays) * new[None]


def _reduce(square: Array) -> tuple[Array, ...]:
    """The means over the largest and over the second largest axis; the array itself for rank < 2."""
    axes = make_axes(square.shape)
    if axes is None:
        return (square,)
    return square.mean(axes.large, keepdims=True), square.mean(axes.small, keepdims=True)


def _compute_channels(layout: Layout, state: RuleState, grad: Array, param: Array) -> Array:
    """The 28 inputs that differ from number to number, in the order of theta's rows: `(28, P)`."""
    momentum, rms, second, _ = state
    rows, cols = [means[0] for means in second], [means[-1] for means in second]
    factors = [
        _compute_factors(row, col, make_axes(shape))
        for row, col, shape in zip(rows, cols, layout.shapes, strict=True)
    ]
    leading = (len(momentum),)
    row, col = layout.join(rows, leading), layout.join(cols, leading)
    grad_factor, momentum_factor = (layout.join(kind, leading) for kind in zip(*factors, strict=True))
    inverse = jax.lax.rsqrt(rms + RMS_EPS)
    return jnp.concatenate(
        [
            grad[None],
            param[None],
            momentum,
            rms,
            momentum * inverse,
            inverse,
            grad[None] * grad_factor,
            row,
            col,
            jax.lax.rsqrt(row + RSQRT_EPS),
            jax.lax.rsqrt(col + RSQRT_EPS),
            momentum * momentum_factor,
        ]
    )


def _compute_factors(row: Array, col: Array, axes: Axes | None) -> tuple[Array, Array]:
    """What the gradient, and what the momenta, are multiplied by to divide them by the factored root."""
    if axes is None:
        return jax.lax.rsqrt(jnp.maximum(row + FACTOR_FLOOR, FACTOR_FLOOR)), jax.lax.rsqrt(row + RMS_EPS)
    relative = row / (row.mean(axes.small + 1, keepdims=True) + FACTOR_FLOOR)
    factor = jax.lax.rsqrt(jnp.maximum(relative, FACTOR_FLOOR)) * jax.lax.rsqrt(
        jnp.maximum(col, FACTOR_FLOOR)
    )
    return factor, factor


def _normalize(channels: Array, layout: Layout) -> Array:
    """Divides each channel by its root mean square over each tensor; two products of matrices do it."""
    member = jnp.asarray(layout.member, channels.dtype)
    sizes = jnp.asarray(layout.sizes, channels.dtype)[None]
    mean_squares = jnp.matmul(channels * channels, member, precision="highest") / sizes
    return channels * jnp.matmul(jax.lax.rsqrt(mean_squares + NORM_EPS), member.T, precision="highest")


def _compute_network(theta: Theta, channels: Array, count: Array) -> tuple[Array, Array]:
    """39 → 4 → 4 → 2 with ReLU for every number; the time, the same for all, is part of the first bias."""
    weights, biases = ([theta[f"nn/~/{kind}{layer}"] for layer in range(3)] for kind in "wb")
    from_channels, from_time = jnp.split(weights[0], [len(channels)])
    time = jnp.tanh(count / jnp.asarray(TIMES, count.dtype) - 1.0)
    biases[0] = biases[0] + jnp.matmul(time, from_time, precision="highest")
    units = channels
    for weight, bias in zip((from_channels, *weights[1:]), biases, strict=True):
        hidden = units if units is channels else jax.nn.relu(units)
        units = jnp.matmul(weight.T, hidden, precision="highest") + bias[:, None]
    direction, magnitude = units
    return direction, magnitude
