"""Gradients → gradients of a fixed scale, which makes the rule independent of the loss's.

The rule's epsilons and its clipped-gradient feature are absolute numbers, so that multiplying the loss
by a constant changes its steps. With `s` the running mean of `mean(g²)` of an array, this transform
gives `g · target / √s`: a constant cancels exactly, while the changes of the gradient from step to step
remain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

__all__ = ["NormalizeGradientsState", "normalize_gradients"]

DECAY = 0.99  # of the running mean


class NormalizeGradientsState(NamedTuple):
    """State of `normalize_gradients`.

    Attributes:
        count: Updates so far, int32.
        mean_square: Running mean of each array's mean square, a tree of float32 scalars.
    """

    count: Array  # type: ignore[assignment]  # Optax's own name, tuple.count is not meant
    mean_square: optax.Params


def normalize_gradients(target: float, *, decay: float = DECAY) -> optax.GradientTransformation:
    """Divides each array by the root of the running mean of its mean square, times `target`.

    A gradient that is not finite goes through as it is and leaves the running mean alone. Squares
    are taken in float32: root mean squares below 1e-19 count as zero, above 1e19 as not finite.

    Args:
        target: Root mean square that gradients get on average, positive.
        decay: Of the running mean, in [0, 1); the mean is corrected for its start at zero.

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
    if not 0 < target < float("inf"):
        raise ValueError(f"target must be a positive number, got {target}.")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}.")

    def init(params: optax.Params) -> NormalizeGradientsState:
        zeros = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
        return NormalizeGradientsState(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: optax.Updates, state: NormalizeGradientsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NormalizeGradientsState]:
        del params
        count = jnp.asarray(optax.safe_increment(state.count))
        correction = 1.0 - decay ** count.astype(jnp.float32)

        def average(grad: Array, mean: Array) -> Array:
            new = _mean_square(grad)  # one step that is not finite must not stay in the mean for ever
            return jnp.where(jnp.isfinite(new), decay * mean + (1.0 - decay) * new, mean)

        def scale(grad: Array, mean: Array) -> Array:
            factor = jnp.where(mean == 0, 0.0, target * jax.lax.rsqrt(mean / correction))
            return (grad.astype(jnp.float32) * factor).astype(grad.dtype)

        mean_square = jax.tree.map(average, updates, state.mean_square)
        return jax.tree.map(scale, updates, mean_square), NormalizeGradientsState(count, mean_square)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _mean_square(grad: Any) -> Array:
    """In float32, so that the square of a small bfloat16 gradient is kept; 0 for an empty array."""
    return jnp.mean(jnp.square(grad.astype(jnp.float32))) if grad.size else jnp.zeros((), jnp.float32)
