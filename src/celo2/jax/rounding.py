"""Stochastic rounding of float32 to bfloat16, which keeps small changes on average.

A bfloat16 has eight bits of precision: an accumulator with decay 0.999 moves by a thousandth of its
distance to the gradient, which rounding to nearest would drop for ever. Rounding up with a
probability equal to the fraction cut off makes the expectation exact (Gupta et al., arXiv 1502.02551,
section 3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

_BITS_CUT = 16  # bits of a float32's significand that are cut off


def round_all(key: Array, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Rounds float32 arrays of one shape stochastically to bfloat16.

    A value that bfloat16 holds is kept, and so are infinities and NaN; above 3.39e38, the largest
    bfloat16, the upper neighbour is infinity.

    Args:
        key: The random key. One random word serves two arrays, sixteen bits each.
        arrays: float32 arrays of one shape; float64 is rounded to float32 first.
    """
    shape = arrays[0].shape
    words = jax.random.bits(key, ((len(arrays) + 1) // 2, *shape), jnp.uint32)
    halves = [half for word in words for half in (word >> _BITS_CUT, word & ((1 << _BITS_CUT) - 1))]
    return tuple(
        _round(array.astype(jnp.float32), noise) for array, noise in zip(arrays, halves, strict=False)
    )


def _round(array: Array, noise: Array) -> Array:
    """Adds noise in [0, 2¹⁶) to the bits and cuts the lower sixteen."""
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32) + noise
    upper = jax.lax.convert_element_type(bits >> _BITS_CUT, jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(array), rounded, array.astype(jnp.bfloat16))
