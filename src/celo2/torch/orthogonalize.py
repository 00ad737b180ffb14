"""Approximate orthogonalisation of matrices by Newton–Schulz iterations.

Source: Muon (Jordan et al., 2024), used by Celo2 (arXiv 2602.19142, section 3.4). With
`X = U S Vᵀ`, the polynomial `c₀ X + (c₁ A + c₂ A²) X`, `A = X Xᵀ`, moves every singular value
towards 1 (between about 0.7 and 1.2 after five iterations), so the result is close to `U Vᵀ`.
Wide matrices are multiplied through their Gram matrix (`celo2.newton_schulz`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.newton_schulz import Polynomial, plan_segments

# Elements of a batch: enough work for a large device, 128 MiB per copy. Not measured on a GPU;
# `benchmarks/torch_step.py --only Celo2` measures it.
BATCH_LIMIT = 1 << 25
HALVED_SIDE = 256  # rows from which a CPU skips a quarter of a symmetric product


def compute(matrices: Tensor, config: RuleConfig) -> Tensor:
    """Orthogonalises the last two axes of a tensor of rank ≥ 2, slice by slice.

    Products of float32 matrices are computed in float32 on CPUs, in bfloat16 elsewhere, as in Muon:
    singular values end anywhere near 1 anyway, so rounding does not matter, and GPUs multiply bfloat16
    many times faster. The Gram form needs float32.

    Args:
        matrices: Shape `(..., m, n)`.
        config: The options `ns_coeffs`, `ns_iters`, `ns_eps`.
    """
    fast = matrices.device.type != "cpu" and matrices.dtype == torch.float32
    dtype = torch.bfloat16 if fast else matrices.dtype
    return iterate(matrices, config, dtype, gram=dtype.itemsize >= 4)


def compute_all(matrices: Sequence[Tensor], config: RuleConfig) -> list[Tensor]:
    """Applies `compute` to tensors of one shape; in batches on a GPU, which small products leave idle."""
    if matrices[0].device.type == "cpu":
        return [compute(matrix, config) for matrix in matrices]
    size = max(BATCH_LIMIT // max(matrices[0].numel(), 1), 1)
    batches = [torch.stack(list(matrices[i : i + size])) for i in range(0, len(matrices), size)]
    return [matrix for batch in batches for matrix in compute(batch, config).unbind()]


def iterate(matrices: Tensor, config: RuleConfig, dtype: torch.dtype, *, gram: bool = False) -> Tensor:
    """Runs Newton–Schulz with products in the given dtype; norm and result have the matrices' dtype.

    Args:
        matrices: Shape `(..., m, n)`.
        config: The options `ns_coeffs`, `ns_iters`, `ns_eps`.
        dtype: The dtype of the products.
        gram: Whether wide matrices may use the Gram form.
    """
    norm = torch.sqrt((matrices * matrices).sum((-2, -1), keepdim=True))
    x = (matrices / (norm + config.ns_eps)).to(dtype)
    x = x.reshape(-1, *x.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for segment in plan_segments(config.ns_polynomials, *x.shape[-2:], gram=gram):
        x = _iterate_plain(x, *segment) if len(segment) == 1 else _iterate_gram(x, segment)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)


def _iterate_plain(x: Tensor, polynomial: Polynomial) -> Tensor:
    c0, c1, c2 = polynomial
    a = _symmetric(x, x.mT)
    return torch.baddbmm(x, _symmetric(a, a, a, beta=c1, alpha=c2), x, beta=c0)


def _iterate_gram(x: Tensor, segment: Sequence[Polynomial]) -> Tensor:
    """Runs several iterations as one product `Q x`, with `A ← B² A` and `Q ← B Q` in each."""
    a = _symmetric(x, x.mT)
    q = b = _make_factor(a, *segment[0])
    for polynomial in segment[1:]:
        a = _symmetric(b, _symmetric(b, a))
        b = _make_factor(a, *polynomial)
        q = _symmetric(b, q)
    return q @ x


def _make_factor(a: Tensor, c0: float, c1: float, c2: float) -> Tensor:
    """Returns `B = c₀ + c₁ A + c₂ A²`."""
    b = _symmetric(a, a, a, beta=c1, alpha=c2)
    b.diagonal(dim1=-2, dim2=-1).add_(c0)
    return b


def _symmetric(
    x: Tensor, y: Tensor, added: Tensor | None = None, *, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """Returns `x y`, or `beta added + alpha x y`, which the caller knows to be symmetric.

    For large products on a CPU, a quarter is copied from across the diagonal instead of computed.
    """
    rows = x.shape[-2]
    if x.device.type != "cpu" or rows < HALVED_SIDE:
        return x @ y if added is None else torch.baddbmm(added, x, y, beta=beta, alpha=alpha)
    half, product = rows // 2, x.new_empty(*x.shape[:-1], rows)
    for above, right in ((slice(half), slice(None)), (slice(half, None), slice(half, None))):
        left_factor, right_factor, out = x[:, above], y[..., right], product[:, above, right]
        if added is None:
            torch.bmm(left_factor, right_factor, out=out)
        else:
            block = added[:, above, right]
            torch.baddbmm(block, left_factor, right_factor, beta=beta, alpha=alpha, out=out)
    product[:, half:, :half] = product[:, :half, half:].mT
    return product
