"""Polynomials of Newton–Schulz iterations, and the Gram form for wide matrices, for all backends.

An iteration is `x ← (c₀ + c₁ A + c₂ A²) x`, `A = x xᵀ`. Since A and the factors B of x are polynomials of one
matrix, the next A is `B² A`: several iterations can be computed from one Gram matrix A, and x is multiplied
only once, by the product of the factors. For m × n matrices this saves products of size m²n.

References:
    Muon (Jordan et al., 2024): one polynomial for all iterations. Polar Express (arXiv 2505.16932): the best
    polynomial for each iteration. Gram Newton–Schulz (Dao-AILab, 2026): products of Gram matrices, with
    restarts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Polynomial = tuple[float, float, float]

# The best polynomials in order, for singular values from 1e-3 to 1; the last one serves all later
# iterations. `tests/oracle/polar_express.py` computes them.
_POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.287212018146, -23.5958865191, 17.30038731253),
    (4.107059111542, -2.947849916738, 0.5448431082927),
    (3.948690853482, -2.908902115963, 0.551819139437),
    (3.318419657371, -2.488488024315, 0.5100489401237),
    (2.300652019955, -1.668903984575, 0.4188073119526),
    (1.891301407787, -1.267995827195, 0.3768040894852),
    (1.875001480792, -1.250001645277, 0.375000164486),
    (1.875, -1.25, 0.375),
)
_SAFETY = 1.01  # the paper's: rounding may push singular values above the interval by as much

# Sizes from which the Gram form was faster on a CPU, in both backends (`benchmarks/newton_schulz.py`).
_GRAM_SIDE = 128  # of the shorter side
_GRAM_RATIO = 2  # of the longer side to the shorter
# Rounding leaves an error of constant size in the eigenvalues s² of A. It matters for the s that a segment
# brings to 1, which are at least 1 / ∏ c₀, so it grows by ∏ c₀². The first A has trace 1, and so less
# rounding. With these limits errors stay within 1.5e-4, several times those of iterations on x
# (`tests/parity`).
_FIRST_GROWTH = 2000.0
_LATER_GROWTH = 200.0


def polar_express(num_iterations: int = 5) -> tuple[Polynomial, ...]:
    """Returns the Polar Express coefficients, one triple per iteration, for `ns_coeffs`.

    For singular values between a thousandth of the Frobenius norm and the norm itself, the worst ends closer
    to 1 than after as many iterations with Muon's coefficients.

    Args:
        num_iterations: From 1 to 100; the last polynomial depends on it.

    Raises:
        ValueError: The number is out of its range.

    Example:
        >>> len(polar_express(4))
        4

    References:
        Amsel, Persson, Musco and Gower, arXiv 2505.16932.
    """
    if not 1 <= num_iterations <= 100:
        raise ValueError(f"num_iterations must be from 1 to 100, got {num_iterations}.")
    last = len(_POLAR_EXPRESS) - 1
    polynomials = [_POLAR_EXPRESS[min(index, last)] for index in range(num_iterations)]
    return (*(_shrink_argument(polynomial) for polynomial in polynomials[:-1]), polynomials[-1])


def _shrink_argument(polynomial: Polynomial) -> Polynomial:
    """Returns the coefficients of `p(x / 1.01)`."""
    c0, c1, c2 = polynomial
    return c0 / _SAFETY, c1 / _SAFETY**3, c2 / _SAFETY**5


def has_each_iteration(ns_coeffs: Any) -> bool:
    """Returns whether there are coefficients for each iteration, rather than one triple for all."""
    return isinstance(ns_coeffs, list | tuple) and any(isinstance(entry, list | tuple) for entry in ns_coeffs)


def coefficient_options(ns_coeffs: Any) -> dict[str, Any]:
    """Returns the rule's options for an optimizer's `ns_coeffs`; triples also set the iteration count."""
    if ns_coeffs is None:
        return {}
    if hasattr(ns_coeffs, "tolist"):  # an array
        ns_coeffs = ns_coeffs.tolist()
    number = {"ns_iters": len(ns_coeffs)} if has_each_iteration(ns_coeffs) else {}
    return {"ns_coeffs": ns_coeffs, **number}


def plan_segments(
    polynomials: Sequence[Polynomial], rows: int, columns: int, *, gram: bool
) -> list[list[Polynomial]]:
    """Divides iterations into segments, each with one Gram matrix and as long as precision allows.

    Args:
        polynomials: The coefficients of each iteration.
        rows: The shorter side of the matrices.
        columns: The longer side.
        gram: Whether segments may have several iterations, which requires products in float32 or better.

    Example:
        >>> [len(segment) for segment in plan_segments([(3.4445, -4.775, 2.0315)] * 5, 384, 1536, gram=True)]
        [3, 2]
    """
    if not gram or rows < _GRAM_SIDE or columns < _GRAM_RATIO * rows:
        return [[polynomial] for polynomial in polynomials]
    segments: list[list[Polynomial]] = [[]]
    growth, limit = 1.0, _FIRST_GROWTH
    for polynomial in polynomials:
        growth *= polynomial[0] ** 2
        if segments[-1] and growth > limit:
            segments.append([])
            growth, limit = polynomial[0] ** 2, _LATER_GROWTH
        segments[-1].append(polynomial)
    return [segment for segment in segments if segment]
