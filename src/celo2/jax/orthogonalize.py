"""Matrix → the nearest semi-orthogonal one, about: Newton–Schulz.

Source: Muon (Jordan et al., 2024), used by Celo2 (arXiv 2602.19142, section 3.4). With
`X = U S Vᵀ`, the polynomial `c₀ X + (c₁ A + c₂ A²) X`, `A = X Xᵀ`, moves every singular value
towards 1 (between about 0.7 and 1.2 after five iterations), so the result is close to `U Vᵀ`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig

__all__ = ["compute"]


def compute(matrices: Array, config: RuleConfig) -> Array:
    """Orthogonalises the last two axes of an array of rank ≥ 2, slice by slice.

    Args:
        matrices: Shape `(..., m, n)`.
        config: `ns_coeffs`, `ns_iters`, `ns_eps`.
    """
    norm = jnp.sqrt(jnp.sum(matrices * matrices, axis=(-2, -1), keepdims=True))
    x = matrices / (norm + config.ns_eps)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = jnp.matrix_transpose(x)
    c0, c1, c2 = config.ns_coeffs
    for _ in range(config.ns_iters):
        a = x @ jnp.matrix_transpose(x)
        x = c0 * x + (c1 * a + c2 * (a @ a)) @ x
    return jnp.matrix_transpose(x) if tall else x
