"""Approximate orthogonalisation of matrices by Newton–Schulz iterations.

Source: Muon (Jordan et al., 2024), used by Celo2 (arXiv 2602.19142, section 3.4). With
`X = U S Vᵀ`, the polynomial `c₀ X + (c₁ A + c₂ A²) X`, `A = X Xᵀ`, moves every singular value
towards 1 (between about 0.7 and 1.2 after five iterations), so the result is close to `U Vᵀ`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig
from celo2.jax.runtime import on_one_device

# Elements of a batch: enough work for a large device, 128 MiB a copy. Not measured on a GPU:
# `benchmarks/gpu.py` does.
BATCH_LIMIT = 1 << 25


def compute(matrices: Array, config: RuleConfig) -> Array:
    """Orthogonalises the last two axes of an array of rank ≥ 2, slice by slice.

    The products of float32 matrices are taken in float32 on CPUs, in bfloat16 elsewhere, as in Muon:
    the polynomial lets singular values end anywhere near 1, so rounding does not matter, and a
    GPU multiplies bfloat16 many times faster.

    Args:
        matrices: Shape `(..., m, n)`.
        config: The options `ns_coeffs`, `ns_iters`, `ns_eps`.
    """
    exact = partial(iterate, config=config, dtype=matrices.dtype)
    if jax.default_backend() == "cpu" or matrices.dtype != jnp.float32:
        return exact(matrices)
    fast = partial(iterate, config=config, dtype=jnp.dtype(jnp.bfloat16))
    return jax.lax.platform_dependent(matrices, cpu=exact, default=fast)


def compute_all(matrices: Sequence[Array], config: RuleConfig) -> list[Array]:
    """Applies `compute` to arrays of one shape, in batches on accelerators, which small products leave idle.

    A CPU is slower in batches (by 15 % on the matrices of `gpt2-15m`). A batch of sharded matrices
    would be gathered as a whole, so matrices that may be sharded are taken one at a time.
    """
    if jax.default_backend() == "cpu" or not on_one_device():
        return [compute(matrix, config) for matrix in matrices]
    size = max(BATCH_LIMIT // matrices[0].size, 1)
    batches = [jnp.stack(matrices[start : start + size]) for start in range(0, len(matrices), size)]
    return [matrix for batch in batches for matrix in compute(batch, config)]


def iterate(matrices: Array, config: RuleConfig, dtype: jnp.dtype) -> Array:
    """Runs Newton–Schulz with products in the given dtype; norm and result have the matrices' own dtype."""
    norm = jnp.sqrt(jnp.sum(matrices * matrices, axis=(-2, -1), keepdims=True))
    x = (matrices / (norm + config.ns_eps)).astype(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = jnp.matrix_transpose(x)
    c0, c1, c2 = config.ns_coeffs
    for _ in range(config.ns_iters):
        a = x @ jnp.matrix_transpose(x)
        x = c0 * x + (c1 * a + c2 * (a @ a)) @ x
    return (jnp.matrix_transpose(x) if tall else x).astype(matrices.dtype)
