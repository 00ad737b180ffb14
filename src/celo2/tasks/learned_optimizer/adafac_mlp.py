"""Differentiable AdaFac-MLP update, for reverse mode through many updates.

Source: arXiv 2203.11860 and its public code. The rule and its constants are those of `celo2.zoo.adafac_mlp`,
and a test compares the two. There, the weights are fixed, or theta is learned without
gradients, and no array has a feature axis. Here, a gradient flows back through every update: the tensors
are concatenated into one vector of P elements and the channels are stacked, so that an update is a few
operations on `(channels, P)` for any number of tensors.
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
    """Layout of tensors concatenated into one vector.

    Attributes:
        shapes: Shapes of the tensors, in order.
    """

    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each tensor; P is their sum."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def member(self) -> np.ndarray:
        """The membership of each element in a tensor: `(P, tensors)`, one-hot rows."""
        return np.repeat(np.eye(len(self.shapes), dtype=np.float32), self.sizes, axis=0)

    def split(self, vector: Array) -> list[Array]:
        """Splits `(..., P)` into `(..., *shape)` for each tensor."""
        parts = jnp.split(vector, list(itertools.accumulate(self.sizes))[:-1], axis=-1)
        return [
            part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def join(self, tensors: Sequence[Array], leading: tuple[int, ...] = ()) -> Array:
        """Concatenates tensors to `(*leading, P)`; each has shape `leading` plus a broadcastable shape."""
        full = [
            jnp.broadcast_to(x, (*leading, *shape)) for x, shape in zip(tensors, self.shapes, strict=True)
        ]
        return jnp.concatenate([tensor.reshape(*leading, -1) for tensor in full], axis=-1)


class RuleState(NamedTuple):
    """State of the rule.

    Attributes:
        momentum: Momenta of the gradient, `(3, P)`.
        rms: Second moment of the gradient, `(1, P)`.
        second: For each tensor, means of the squared gradient over its largest and over its second
            largest axis, kept with length 1, behind the three decays; the square itself for rank < 2.
        count: Number of updates so far, a scalar of theta's dtype.
    """

    momentum: Array
    rms: Array
    second: list[tuple[Array, ...]]
    count: Array  # type: ignore[assignment]  # shadows tuple.count


class _Decays(NamedTuple):
    momentum: Array
    rms: Array
    adafactor: Array


def init_state(layout: Layout, dtype: jnp.dtype) -> RuleState:
    """Makes the state before the first update, all zeros."""
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
    """Takes one update step for all tensors.

    Args:
        theta: The meta-parameters by name, as from `celo2.zoo.init_theta("adafac_mlp", key)`.
        layout: Layout of the tensors.
        state: State before this update.
        grad: Gradient, `(P,)`.
        param: Parameters, `(P,)`.

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
    """Updates the accumulators; without bias correction, they are too small at first."""
    second = [
        tuple(_average(decays.adafactor, old, new) for old, new in zip(olds, _reduce(square), strict=True))
        for olds, square in zip(state.second, layout.split(grad * grad + FACTORED_EPS), strict=True)
    ]
    momentum = _average(decays.momentum, state.momentum, grad)
    return state._replace(momentum=momentum, rms=_average(decays.rms, state.rms, grad * grad), second=second)


def _average(decays: Array, old: Array, new: Array) -> Array:
    """Computes `β old + (1 - β) new` for each decay: `(D, ...)`, with `new` of shape `(...)`."""
    decays = jnp.expand_dims(decays, tuple(range(1, old.ndim)))
    return decays * old + (1.0 - decays) * new[None]


def _reduce(square: Array) -> tuple[Array, ...]:
    """Averages over the largest and over the second-largest axis; returns the array itself for rank < 2."""
    axes = make_axes(square.shape)
    if axes is None:
        return (square,)
    return square.mean(axes.large, keepdims=True), square.mean(axes.small, keepdims=True)


def _compute_channels(layout: Layout, state: RuleState, grad: Array, param: Array) -> Array:
    """Computes the 28 inputs that differ between elements, in the order of theta's rows: `(28, P)`."""
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
    """Computes the factors that divide the gradient and the momenta by the factored root."""
    if axes is None:
        return jax.lax.rsqrt(jnp.maximum(row + FACTOR_FLOOR, FACTOR_FLOOR)), jax.lax.rsqrt(row + RMS_EPS)
    relative = row / (row.mean(axes.small + 1, keepdims=True) + FACTOR_FLOOR)
    factor = jax.lax.rsqrt(jnp.maximum(relative, FACTOR_FLOOR)) * jax.lax.rsqrt(
        jnp.maximum(col, FACTOR_FLOOR)
    )
    return factor, factor


def _normalize(channels: Array, layout: Layout) -> Array:
    """Divides each channel by its root mean square over each tensor, using two matrix products."""
    member = jnp.asarray(layout.member, channels.dtype)
    sizes = jnp.asarray(layout.sizes, channels.dtype)[None]
    mean_squares = jnp.matmul(channels * channels, member, precision="highest") / sizes
    return channels * jnp.matmul(jax.lax.rsqrt(mean_squares + NORM_EPS), member.T, precision="highest")


def _compute_network(theta: Theta, channels: Array, count: Array) -> tuple[Array, Array]:
    """Applies the 39 → 4 → 4 → 2 ReLU network; the time, equal for all, enters through the first bias."""
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
