"""Task augmentation: train a network in other units.

Source: Celo (arXiv 2501.12670, section 3.3) and Celo2 (arXiv 2602.19142, section 3.5). The initial
parameters are divided by a scale and used multiplied by it, so that the function at the start is the
same while its landscape is stretched: `p̃₀ = p₀ / s`, `loss̃(p̃) = loss(s · p̃)`.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Params

__all__ = ["LEVELS", "Level", "from_scaled", "sample_scales", "to_scaled"]

Level = Literal["global", "tensor", "parameter", "none"]
LEVELS: tuple[str, ...] = get_args(Level)


def sample_scales(key: Array, params: Params, level: Level, scale_range: tuple[float, float]) -> Params:
    """Draws the scales of one task, log-uniform.

    Args:
        key: Random key.
        params: The tree to be scaled; only its shapes are used.
        level: One scale for the whole tree ("global"), one for each array ("tensor"), one for each
            element ("parameter"), or ones ("none").
        scale_range: Least and greatest scale, both positive.

    Returns:
        A tree like `params`, of scalars, or of arrays of the parameters' shapes for "parameter".
    """
    leaves, treedef = jax.tree.flatten(params)
    low, high = (jnp.log(jnp.float32(bound)) for bound in scale_range)

    def draw(draw_key: Array, shape: tuple[int, ...]) -> Array:
        return jnp.exp(jax.random.uniform(draw_key, shape, minval=low, maxval=high))

    if level == "none":
        scales = [jnp.ones(()) for _ in leaves]
    elif level == "global":
        scales = [draw(key, ())] * len(leaves)
    else:
        keys = jax.random.split(key, len(leaves))
        shapes = [leaf.shape if level == "parameter" else () for leaf in leaves]
        scales = [draw(leaf_key, shape) for leaf_key, shape in zip(keys, shapes, strict=True)]
    return treedef.unflatten(scales)


def to_scaled(params: Params, scales: Params) -> Params:
    """The stored parameters: `params / scales`."""
    return jax.tree.map(jnp.divide, params, scales)


def from_scaled(stored: Params, scales: Params) -> Params:
    """The parameters that the network uses: `stored · scales`."""
    return jax.tree.map(jnp.multiply, stored, scales)
