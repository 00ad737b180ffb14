"""Kronecker factors of Shampoo and SOAP: one matrix for the rows of a gradient, one for its columns.

L ← β L + (1 - β) G Gᵀ,    R ← β R + (1 - β) Gᵀ G
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

DEFAULT_MAX_DIM = 1024  # longer axes get no factor: it would be larger than the matrix itself
EVERY = 10  # steps from one decomposition to the next


class Factors(NamedTuple):
    """Pair of factors `(batch, m, m)` and `(batch, n, n)`; None for an axis without one."""

    left: Array | None
    right: Array | None

    @property
    def order(self) -> int:
        """The number of factors."""
        return sum(factor is not None for factor in self)


def zero_factors(matrices: Array, max_dim: int) -> Factors:
    """Returns zero factors for the axes of `(batch, m, n)` that are no longer than `max_dim`."""

    def zeros(size: int) -> Array | None:
        return jnp.zeros((len(matrices), size, size), matrices.dtype) if size <= max_dim else None

    return Factors(zeros(matrices.shape[-2]), zeros(matrices.shape[-1]))


def accumulate(factors: Factors, grad: Array, decay: float) -> Factors:
    """Returns the factors updated with a gradient `(batch, m, n)`."""
    left, right = factors
    transposed = jnp.matrix_transpose(grad)
    return Factors(
        None if left is None else decay * left + (1 - decay) * (grad @ transposed),
        None if right is None else decay * right + (1 - decay) * (transposed @ grad),
    )


def sandwich(left: Array | None, matrices: Array, right: Array | None) -> Array:
    """Returns `left · matrices · right`, where None is the identity."""
    product = matrices if left is None else left @ matrices
    return product if right is None else product @ right
