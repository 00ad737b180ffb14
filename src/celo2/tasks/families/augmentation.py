"""Task augmentation by rescaling of parameters.

Source: Celo (arXiv 2501.12670, section 3.3) and Celo2 (arXiv 2602.19142, section 3.5). The initial
parameters are divided by a scale and multiplied by it again when used, so that the initial function is the
same but the landscape is stretched: `p̃₀ = p₀ / s`, `loss̃(p̃) = loss(s · p̃)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Params

Level = Literal["global", "tensor", "parameter", "none"]
LEVELS: tuple[str, ...] = get_args(Level)


class ScaleLaw(NamedTuple):
    """The distribution of `sample_scales`: the level, and the minimum and maximum scale."""

    level: Level
    scale_range: tuple[float, float]


def parse_mixture(entries: Sequence[str], scale_range: tuple[float, float]) -> tuple[ScaleLaw, ...]:
    """Parses entries `LEVEL` or `LEVEL:LOW:HIGH`.

    Args:
        entries: The entries as text.
        scale_range: Range of the entries without one.

    Raises:
        ValueError: An entry is malformed, or its numbers are not positive and ascending.

    Example:
        >>> parse_mixture(["tensor:0.1:10"], (1e-3, 1e3))
        (ScaleLaw(level='tensor', scale_range=(0.1, 10.0)),)
    """
    laws = []
    for entry in entries:
        level, *words = entry.split(":")
        try:
            low, high = map(float, words) if words else scale_range
        except ValueError:
            low = high = math.nan
        if level not in LEVELS or not 0 < low <= high < math.inf or (level == "none" and words):
            raise ValueError(
                f"expected LEVEL or LEVEL:LOW:HIGH, 0 < LOW ≤ HIGH, LEVEL one of {LEVELS}, got {entry!r} "
                "('none' has no range)."
            )
        laws.append(ScaleLaw(cast(Level, level), (low, high)))
    return tuple(laws)


def log_uniform(key: Array, low: float, high: float) -> Array:
    """Draws a log-uniform number between two positive ones, `()` float32."""
    bounds = jnp.log(jnp.float32(low)), jnp.log(jnp.float32(high))
    return jnp.exp(jax.random.uniform(key, (), minval=bounds[0], maxval=bounds[1]))


def sample_scales(key: Array, params: Params, level: Level, scale_range: tuple[float, float]) -> Params:
    """Draws the log-uniform scales of one task.

    Args:
        key: Random key.
        params: The tree to be scaled; only its shapes are used.
        level: One scale for the whole tree ("global"), one for each array ("tensor"), one for each
            element ("parameter"), or ones ("none").
        scale_range: Minimum and maximum scale, both positive.

    Returns:
        A tree like `params` of scalars, or, for "parameter", of arrays with the parameters' shapes.
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


def sample_mixed_scales(key: Array, params: Params, laws: Sequence[ScaleLaw]) -> Params:
    """Draws one of the laws uniformly, and the scales of one task from it.

    Args:
        key: Random key.
        params: The tree to be scaled; only its shapes are used.
        laws: At least one law; a law that occurs twice is twice as likely.

    Returns:
        A tree like `params` of scalars, or of arrays with the parameters' shapes if a law has the level
        "parameter".
    """
    law_key, scale_key = jax.random.split(key)
    chosen = jax.random.randint(law_key, (), 0, len(laws))
    by_element = any(law.level == "parameter" for law in laws)

    def draw(law: ScaleLaw) -> Params:
        scales = sample_scales(scale_key, params, law.level, law.scale_range)
        if not by_element:
            return scales
        return jax.tree.map(lambda scale, leaf: jnp.broadcast_to(scale, leaf.shape), scales, params)

    return jax.tree.map(lambda *drawn: jax.lax.select_n(chosen, *drawn), *map(draw, laws))


def to_scaled(params: Params, scales: Params) -> Params:
    """Converts to the stored parameters, `params / scales`."""
    return jax.tree.map(jnp.divide, params, scales)


def from_scaled(stored: Params, scales: Params) -> Params:
    """Converts to the parameters that the network uses, `stored · scales`."""
    return jax.tree.map(jnp.multiply, stored, scales)
