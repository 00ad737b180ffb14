"""Approximate orthogonalisation of matrices by Newton–Schulz iterations.

Source: Muon (Jordan et al., 2024), used by Celo2 (arXiv 2602.19142, section 3.4). With
`X = U S Vᵀ`, the polynomial `c₀ X + (c₁ A + c₂ A²) X`, `A = X Xᵀ`, moves every singular value
towards 1 (between about 0.7 and 1.2 after five iterations), so the result is close to `U Vᵀ`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from celo2.config import RuleConfig

# Elements of a batch: enough work for a large device, 128 MiB a copy. Not measured on a GPU:
# `benchmarks/torch_step.py --only Celo2` does.
BATCH_LIMIT = 1 << 25


def compute(matrices: Tensor, config: RuleConfig) -> Tensor:
    """Orthogonalises the last two axes of a tensor of rank ≥ 2, slice by slice.

    The products of float32 matrices are taken in float32 on CPUs, in bfloat16 elsewhere, as in Muon:
    the polynomial lets singular values end anywhere near 1, so rounding does not matter, and a
    GPU multiplies bfloat16 many times faster.

    Args:
        matrices: Shape `(..., m, n)`.
        config: The options `ns_coeffs`, `ns_iters`, `ns_eps`.
    """
    fast = matrices.device.type != "cpu" and matrices.dtype == torch.float32
    return iterate(matrices, config, torch.bfloat16 if fast else matrices.dtype)


def compute_all(matrices: Sequence[Tensor], config: RuleConfig) -> list[Tensor]:
    """Applies `compute` to tensors of one shape, in batches on a GPU, which small products leave idle."""
    if matrices[0].device.type == "cpu":
        return [compute(matrix, config) for matrix in matrices]
    size = max(BATCH_LIMIT // max(matrices[0].numel(), 1), 1)
    batches = [torch.stack(list(matrices[i : i + size])) for i in range(0, len(matrices), size)]
    return [matrix for batch in batches for matrix in compute(batch, config).unbind()]


def iterate(matrices: Tensor, config: RuleConfig, dtype: torch.dtype) -> Tensor:
    """Runs Newton–Schulz with products in the given dtype; norm and result have the matrices' own dtype."""
    norm = torch.sqrt((matrices * matrices).sum((-2, -1), keepdim=True))
    x = (matrices / (norm + config.ns_eps)).to(dtype)
    x = x.reshape(-1, *x.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    c0, c1, c2 = config.ns_coeffs
    for _ in range(config.ns_iters):
        a = x @ x.mT
        polynomial = torch.baddbmm(a, a, a, beta=c1, alpha=c2)
        x = torch.baddbmm(x, polynomial, x, beta=c0)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)
