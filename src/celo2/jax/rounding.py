"""Stochastic rounding of float32 to bfloat16, which keeps small changes on average.

A bfloat16 has eight bits of precision: an accumulator with decay 0.999 moves by a thousandth of its
distance to the gradient, and rounding to nearest would always drop that change. Rounding up with a
probability equal to the fraction cut off makes the expectation exact (Gupta et al., arXiv 1502.02551,
section 3).

The noise is a hash of the step count and the indices of the parameter and the element, as in
`celo2.torch.rounding`: it is computed where needed and never stored, and runs repeat exactly. The
hash is MurmurHash3's finalizer (A. Appleby).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

_BITS_CUT = 16  # bits of a float32 significand that are cut off
_LOWER = (1 << _BITS_CUT) - 1
_WORDS = 64  # upper bound on the random words that one element needs in one step


def round_to_bfloat16(array: Array, noise: Array) -> Array:
    """Rounds a float32 array stochastically to bfloat16.

    Values that bfloat16 represents exactly are kept, as are infinities and NaN; above 3.39e38, the largest
    bfloat16, the upper neighbour is infinity. float64 is rounded to float32 first.

    Args:
        array: Any array of floating-point numbers.
        noise: Uniform integers from 0 to 65535, uint32, of the array's shape: they are added to the bits,
            whose lower sixteen are cut.
    """
    array = array.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32) + noise
    upper = jax.lax.convert_element_type(bits >> _BITS_CUT, jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(array), rounded, array.astype(jnp.bfloat16))


def make_noise(shape: tuple[int, ...], num_arrays: int, count: Array, number: ArrayLike) -> list[Array]:
    """Returns uniform integers from 0 to 65535, uint32, for each of several arrays of one shape.

    Args:
        shape: The shape of the arrays.
        num_arrays: The number of arrays.
        count: The step count, a scalar.
        number: The parameter's index. One hash serves two arrays, sixteen bits each.
    """
    elements = _flat_indices(shape)
    seed = _hash(count.astype(jnp.uint32)) + jnp.asarray(number, jnp.uint32) * jnp.uint32(_WORDS)
    noises: list[Array] = []
    for pair in range((num_arrays + 1) // 2):
        words = _hash(elements ^ _hash(seed + jnp.uint32(pair)))
        noises += [words >> _BITS_CUT, words & _LOWER]
    return noises[:num_arrays]


def _flat_indices(shape: tuple[int, ...]) -> Array:
    """Returns the index of each element in the flattened array, modulo 2³².

    In larger arrays, elements 2³² apart share noise.
    """
    total = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % (1 << 32)
        total += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return total


def _hash(words: Array) -> Array:
    """Hashes 32-bit words; products wrap around."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        words = (words ^ (words >> shift)) * jnp.uint32(factor)
    return words
