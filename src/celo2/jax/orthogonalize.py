"""Approximate orthogonalisation of matrices by Newton–Schulz iterations.

Source: Muon (Jordan et al., 2024), used by Celo2 (arXiv 2602.19142, section 3.4). With
`X = U S Vᵀ`, the polynomial `c₀ X + (c₁ A + c₂ A²) X`, `A = X Xᵀ`, moves every singular value
towards 1 (between about 0.7 and 1.2 after five iterations), so the result is close to `U Vᵀ`.
Wide matrices are multiplied through their Gram matrix (`celo2.newton_schulz`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig
from celo2.jax.runtime import on_one_device
from celo2.newton_schulz import Polynomial, plan_segments

# Elements of a batch: enough work for a large device, 128 MiB per copy. Not measured on a GPU yet;
# `benchmarks/gpu.py` does that.
BATCH_LIMIT = 1 << 25


def compute(matrices: Array, config: RuleConfig) -> Array:
    """Orthogonalises the last two axes of an array of rank ≥ 2, slice by slice.

    Products of float32 matrices are computed in float32 on CPUs and in bfloat16 elsewhere, as in Muon:
    the polynomial lets singular values end anywhere near 1, so rounding does not matter, and a
    GPU multiplies bfloat16 many times faster. The Gram form needs float32, and is not used where matrices
    may be sharded, since the compiler partitions their products.

    Args:
        matrices: Shape `(..., m, n)`.
        config: The options `ns_coeffs`, `ns_iters`, `ns_eps`.
    """
    gram = matrices.dtype.itemsize >= 4 and on_one_device()
    exact = partial(iterate, config=config, dtype=matrices.dtype, gram=gram)
    if jax.default_backend() == "cpu" or matrices.dtype != jnp.float32:
        return exact(matrices)
    fast = partial(iterate, config=config, dtype=jnp.dtype(jnp.bfloat16))
    return jax.lax.platform_dependent(matrices, cpu=exact, default=fast)


def compute_all(matrices: Sequence[Array], config: RuleConfig) -> list[Array]:
    """Applies `compute` to arrays of one shape, in batches on accelerators, which small products leave idle.

    On a CPU batches are slower (by 15 % on the matrices of `gpt2-15m`). A batch of sharded matrices
    would be gathered as a whole, so matrices that may be sharded are processed one at a time.
    """
    if jax.default_backend() == "cpu" or not on_one_device():
        return [compute(matrix, config) for matrix in matrices]
    size = max(BATCH_LIMIT // matrices[0].size, 1)
    batches = [jnp.stack(matrices[start : start + size]) for start in range(0, len(matrices), size)]
    return [matrix for batch in batches for matrix in compute(batch, config)]


def iterate(matrices: Array, config: RuleConfig, dtype: jnp.dtype, *, gram: bool = False) -> Array:
    """Runs Newton–Schulz with products in the given dtype; norm and result have the matrices' own dtype.

    Args:
        matrices: Shape `(..., m, n)`.
        config: The options `ns_coeffs`, `ns_iters`, `ns_eps`.
        dtype: The dtype of the products.
        gram: Whether wide matrices may use the Gram form.
    """
    norm = jnp.sqrt(jnp.sum(matrices * matrices, axis=(-2, -1), keepdims=True))
    x = (matrices / (norm + config.ns_eps)).astype(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = jnp.matrix_transpose(x)
    for segment in plan_segments(config.ns_polynomials, *x.shape[-2:], gram=gram):
        x = _iterate_plain(x, *segment) if len(segment) == 1 else _iterate_gram(x, segment)
    return (jnp.matrix_transpose(x) if tall else x).astype(matrices.dtype)


def _iterate_plain(x: Array, polynomial: Polynomial) -> Array:
    c0, c1, c2 = polynomial
    a = x @ jnp.matrix_transpose(x)
    return c0 * x + (c1 * a + c2 * (a @ a)) @ x


def _iterate_gram(x: Array, segment: Sequence[Polynomial]) -> Array:
    """Runs several iterations as one product `Q x`, where `A ← B² A` and `Q ← B Q` for each."""
    a = multiply(x, jnp.matrix_transpose(x))
    q = b = _make_factor(a, *segment[0])
    for polynomial in segment[1:]:
        a = multiply(b, multiply(b, a))
        b = _make_factor(a, *polynomial)
        q = multiply(b, q)
    return multiply(q, x)


def _make_factor(a: Array, c0: float, c1: float, c2: float) -> Array:
    """Returns `B = c₀ + c₁ A + c₂ A²`."""
    identity = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    return c0 * identity + c1 * a + c2 * multiply(a, a)


def multiply(left: Array, right: Array) -> Array:
    """Multiplies matrices in their own precision, which may not be a GPU's default."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
