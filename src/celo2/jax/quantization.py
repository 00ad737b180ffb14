"""Momenta in one byte per parameter: the sign and the root of the magnitude relative to the row's largest.

    s = max |x| of a row,    q = round(127 √(|x| / s)),    x ≈ sign(x) (q / 127)² s

The root spaces codes evenly in √|x|, so a large outlier costs its row little precision. Rounding between
the values of neighbouring codes is stochastic and exact on average: otherwise an average with a decay of 0.99
would lose all changes smaller than a code. The noise is that of `rounding`. Values that codes represent
exactly are kept, so a state that is only read and written does not drift. Second moments stay bfloat16, since
the rule divides by their roots: the smallest code above zero is 6e-5 of the row's largest.

Block-wise codes with a scale come from 8-bit optimizers, arXiv 2110.02861, section 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from celo2.constants import CODE_LEVELS, NOISE_VALUES


class Quantized(NamedTuple):
    """An array stored in one byte per element.

    Attributes:
        codes: The signed codes from -127 to 127, int8, of the array's shape.
        scale: The largest magnitude of each row, float32, of the array's shape with the last axis reduced
            to 1.
    """

    codes: Array
    scale: Array


def zeros_like(param: Array) -> Quantized:
    """Returns zeros of a parameter's shape and sharding."""
    codes = jnp.zeros_like(param, dtype=jnp.int8)
    return Quantized(codes, jnp.zeros_like(codes[..., :1] if codes.ndim else codes, dtype=jnp.float32))


def encode(array: Array, noise: Array) -> Quantized:
    """Rounds an array stochastically to codes.

    Args:
        array: Any array of floating-point numbers; a row with an infinity or NaN is decoded as NaN.
        noise: Uniform integers from 0 to 65535, uint32, of the array's shape.
    """
    array = array.astype(jnp.float32)
    magnitudes = jnp.abs(array)
    scale = jnp.max(magnitudes, -1, keepdims=True, initial=0.0) if array.ndim else magnitudes
    share = jnp.where(scale > 0, magnitudes / scale, 0)
    low = jnp.floor(CODE_LEVELS * jnp.sqrt(share))
    below, above = (jnp.square((low + step) / CODE_LEVELS) for step in (0, 1))
    up = (share - below) / (above - below) * NOISE_VALUES > noise.astype(jnp.float32) + 0.5
    codes = jnp.minimum(low + up.astype(jnp.float32), CODE_LEVELS)
    return Quantized((jnp.sign(array) * codes).astype(jnp.int8), scale)


def decode(stored: Quantized, dtype: Any) -> Array:
    """Decodes to an array of the given dtype, computed in float32 as in `encode`."""
    codes = stored.codes.astype(jnp.float32)
    return (jnp.sign(codes) * jnp.square(codes / CODE_LEVELS) * stored.scale).astype(dtype)
