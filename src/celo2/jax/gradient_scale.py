"""Transforms and functions that measure and normalize the scale of gradients.

The rule's epsilons and its clipped-gradient feature are absolute numbers, so multiplying the loss by a
constant changes its steps. `share_outside` and `watch_gradients` measure how much of a network has
gradients of a scale that the weights did not see in meta-training. `normalize_gradients` removes the
scale: with `s`, the running mean of an array's `mean(g²)`, it returns `g · target / √s`. A constant factor
cancels exactly, while changes of the gradient from step to step remain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.constants import GRADIENT_DECAY
from celo2.gradient_range import check_normalization, resolve_range
from celo2.weights.checkpoint import SHIPPED, Weights


class NormalizeGradientsState(NamedTuple):
    """State of `normalize_gradients`.

    Attributes:
        mean_square: The running mean of each array's mean square, starting at zero, a tree of float32
            scalars.
        weight: The running mean of ones, a tree of float32 scalars, which corrects for the start at zero.
    """

    mean_square: optax.Params
    weight: optax.Params


def normalize_gradients(target: float, *, decay: float = GRADIENT_DECAY) -> optax.GradientTransformation:
    """Scales each array by `target` over the root of the running mean of its mean square.

    A gradient that is not finite passes through and does not affect the running mean. Squares
    are computed in float32: root mean squares below 1e-19 count as zero, above 1e19 as not finite.

    Args:
        target: The average root mean square of the scaled gradients, positive.
        decay: The decay of the running mean, in [0, 1); the mean is corrected for its start at zero.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = normalize_gradients(1e-2)
        >>> grads = {"kernel": jnp.full((2, 2), 1e-9)}
        >>> updates, _ = tx.update(grads, tx.init(grads))
        >>> round(float(updates["kernel"][0, 0]), 6)
        0.01
    """
    check_normalization(target, decay)

    def init(params: optax.Params) -> NormalizeGradientsState:
        zeros = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
        return NormalizeGradientsState(zeros, zeros)

    def update(
        updates: optax.Updates, state: NormalizeGradientsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NormalizeGradientsState]:
        del params
        new = jax.tree.map(_mean_square, updates)

        def average(new: Array, mean: Array, value: Array) -> Array:
            """Updates a running mean, unless the new value is not finite."""
            return jnp.where(jnp.isfinite(new), decay * mean + (1.0 - decay) * value, mean)

        def scale(grad: Array, new: Array, mean: Array, weight: Array) -> Array:
            factor = jnp.where(mean == 0, 0.0, target * jax.lax.rsqrt(mean / weight))
            scaled = (grad.astype(jnp.float32) * factor).astype(grad.dtype)
            return jnp.where(jnp.isfinite(new), scaled, grad)

        mean_square = jax.tree.map(average, new, state.mean_square, new)
        weight = jax.tree.map(lambda new, old: average(new, old, jnp.ones_like(old)), new, state.weight)
        scaled = jax.tree.map(scale, updates, new, mean_square, weight)
        return scaled, NormalizeGradientsState(mean_square, weight)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _mean_square(grad: Any) -> Array:
    """Computes the mean square in float32, which can represent small squares; 0 for an empty array."""
    return jnp.mean(jnp.square(grad.astype(jnp.float32))) if grad.size else jnp.zeros((), jnp.float32)


class WatchGradientsState(NamedTuple):
    """State of `watch_gradients`.

    Attributes:
        share_outside: `share_outside` of the last gradients, float32; 0 before the first.
    """

    share_outside: Array


def share_outside(
    grads: optax.Updates,
    low: float | None = None,
    high: float | None = None,
    *,
    weights: Weights | str = SHIPPED[0],
) -> Array:
    """Computes the share of parameters in arrays whose gradient has a root mean square outside [low, high].

    Arrays are weighted by their number of parameters, so the share tells how much of the network gets steps
    from features outside the range of meta-training; unweighted, the many biases and norms of a deep network
    would outvote its matrices. An array whose gradient is zero everywhere (a frozen layer, an expert that got
    no token) has no scale and is ignored. A gradient that is not finite is outside.

    Args:
        grads: Gradients of any floating dtypes. `None`, `optax.MaskedNode` and arrays without elements
            are left out, so `optax.masked` decides what counts.
        low: The lower end of the range; None: that of the weights.
        high: The upper end of the range; None: that of the weights.
        weights: The weights whose range is used where low or high is None: a result or an argument of
            `celo2.load_checkpoint`.

    Returns:
        A float32 scalar in [0, 1]; 0 where nothing has a gradient.

    Raises:
        ValueError: Unless 0 < low < high < ∞, or if the weight file contains no range.

    Example:
        >>> import jax.numpy as jnp
        >>> grads = {"kernel": jnp.full((3, 2), 1e-7), "bias": jnp.full(2, 1e-2)}
        >>> float(share_outside(grads, 1e-4, 1.0))
        0.75
    """
    return _share_outside(grads, *resolve_range(low, high, weights))


def watch_gradients(
    low: float | None = None, high: float | None = None, *, weights: Weights | str = SHIPPED[0]
) -> optax.GradientTransformation:
    """Passes gradients through unchanged and stores `share_outside` of the last ones in its state.

    Put it right before the rule, after clipping, `normalize_gradients` and anything else that scales
    gradients. Celo2 gives some arrays to AdamW, which ignores their scale; `optax.masked` excludes them.

    Args:
        low: As in `share_outside`.
        high: As in `share_outside`.
        weights: As in `share_outside`.

    Raises:
        ValueError: As in `share_outside`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = optax.chain(watch_gradients(1e-4, 1.0), optax.sgd(0.1))
        >>> grads = {"kernel": jnp.full((2, 2), 1e-7)}
        >>> _, state = tx.update(grads, tx.init(grads))
        >>> float(optax.tree_utils.tree_get(state, "share_outside"))
        1.0
    """
    bounds = resolve_range(low, high, weights)

    def init(params: optax.Params) -> WatchGradientsState:
        del params
        return WatchGradientsState(jnp.zeros((), jnp.float32))

    def update(
        updates: optax.Updates, state: WatchGradientsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, WatchGradientsState]:
        del state, params
        return updates, WatchGradientsState(_share_outside(updates, *bounds))

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _share_outside(grads: optax.Updates, low: float, high: float) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(grads) if leaf.size]
    outside, counted = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    for leaf in leaves:
        rms, size = _root_mean_square(leaf), jnp.float32(leaf.size)
        outside += jnp.where((rms == 0) | ((low <= rms) & (rms <= high)), 0.0, size)  # NaN is outside
        counted += jnp.where(rms == 0, 0.0, size)
    return outside / jnp.maximum(counted, 1.0)


def _root_mean_square(grad: Array) -> Array:
    """Computes the root mean square in float32, in units of the largest element to stay in range."""
    grad = jnp.abs(grad.astype(jnp.float32))
    largest = jnp.max(grad)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return unit * jnp.sqrt(jnp.mean(jnp.square(grad / unit)))
