"""The bounds that the published evaluation tasks put on a loss before it is averaged or compared.

They differ in what a loss that is not a number becomes, and one of them in scale.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

__all__ = ["LOSS_CLIP", "clip_cross_entropy", "clip_error", "clip_or_ceiling", "clip_to_ten"]

LOSS_CLIP = 1.5  # times the loss of an untrained network: the ceiling


def clip_cross_entropy(loss: Array, num_classes: int) -> Array:
    """Within [0, 1.5 ln K]; NaN stays NaN."""
    return jnp.clip(loss, 0.0, LOSS_CLIP * math.log(num_classes))


def clip_or_ceiling(loss: Array, num_classes: int) -> Array:
    """Within [0, 1.5 ln K]; NaN becomes the ceiling."""
    ceiling = LOSS_CLIP * math.log(num_classes)
    return jnp.where(jnp.isnan(loss), jnp.asarray(ceiling, loss.dtype), clip_cross_entropy(loss, num_classes))


def clip_to_ten(loss: Array, num_classes: int) -> Array:
    """`10 loss / ln 2K` within [0, 10]; what is not finite becomes 10, an infinite gain too."""
    ceiling = math.log(2 * num_classes)
    finite = jnp.where(jnp.isfinite(loss), loss, jnp.asarray(ceiling, loss.dtype))
    return jnp.clip(10.0 * finite / ceiling, 0.0, 10.0)


def clip_error(loss: Array) -> Array:
    """A squared error of values in [0, 1], within [0, 1]; NaN stays NaN."""
    return jnp.clip(loss, 0.0, 1.0)
