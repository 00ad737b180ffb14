"""Matrix → the nearest semi-orthogonal one, about: Newton–Schulz.

Source: Muon (Jordan et al., 2024), used by Celo2 (arXiv 2602.19142, section 3.4). With
`X = U S Vᵀ`, the polynomial `c₀ X + (c₁ A + c₂ A²) X`, `A = X Xᵀ`, moves every singular value
towards 1 (between about 0.7 and 1.2 after five iterations), so the result is close to `U Vᵀ`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from celo2.config import RuleConfig

__all__ = ["compute"]


def compute(matrices: Tensor, config: RuleConfig) -> Tensor:
    """Orthogonalises the last two axes of a tensor of rank ≥ 2, slice by slice.

    Args:
        matrices: Shape `(..., m, n)`.
        config: `ns_coeffs`, `ns_iters`, `ns_eps`.
    """
    norm = torch.sqrt((matrices * matrices).sum((-2, -1), keepdim=True))
    x = (matrices / (norm + config.ns_eps)).flatten(0, -3)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    c0, c1, c2 = config.ns_coeffs
    for _ in range(config.ns_iters):
        a = x @ x.mT
        polynomial = torch.baddbmm(a, a, a, beta=c1, alpha=c2)
        x = torch.baddbmm(x, polynomial, x, beta=c0)
    return (x.mT if tall else x).reshape(matrices.shape)
