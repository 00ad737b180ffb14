"""Every numerical tolerance of the parity tests, near three times the error measured, with its reason.

An error is the largest difference over the largest magnitude expected (`relative_error`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

NEARLY_ZERO = 1e-3  # below this magnitude a whole step is compared absolutely, in units of this number

# name: (tolerance, reason); the largest error measured in parentheses
TOLERANCES = {
    "oracle, reference": (2.5e-5, "the reference's float32 rounding (7.1e-6, no_normalize_input mlp/w_wide)"),
    "oracle, reference, orthogonalized": (
        1.2e-4,
        "Newton–Schulz amplifies the reference's float32 rounding along small singular values "
        "(3.8e-5, celo2_mixed square/w; 9.2e-6 elsewhere)",
    ),
    "oracle, golden": (3e-7, "golden files store float32 (6e-8), and matmul order differs between machines"),
    "jax, reference": (2.5e-5, "as for the oracle: float32 rounding on both sides (7.3e-6)"),
    "jax, reference, orthogonalized": (1e-4, "as for the oracle; the project promises 1e-4 (3.7e-5)"),
    "jax, golden": (1e-5, "float32 rounding on small matrices (2.9e-6, celo2 square)"),
    "jax float32, oracle": (2.5e-5, "the same over random options (8.0e-6)"),
    "jax float64, oracle": (
        1e-12,
        "float64 rounding, amplified by Newton–Schulz (3.7e-14 on the examples drawn)",
    ),
    "torch, reference": (2.5e-5, "as in JAX (7.3e-6, no_normalize_input mlp/w_wide)"),
    "torch, reference, orthogonalized": (1e-4, "as in JAX (3.8e-5, celo2_mixed square/w)"),
    "torch, golden": (1e-5, "as in JAX (2.9e-6)"),
    "torch float32, oracle": (3e-5, "float32 rounding over random options (9.8e-6)"),
    "torch float64, oracle": (
        1.5e-13,
        "float64 rounding, amplified by Newton–Schulz (4.3e-14 on the examples drawn)",
    ),
    "newton-schulz float32, float64": (
        1.5e-4,
        "float32 rounding, amplified up to 500 times along small singular values, as a spectral norm; both "
        "forms (plain 4.2e-5, polar express, steep power law; gram 4.9e-5, four of muon, the same)",
    ),
    "torch, jax after 50 steps": (1e-3, "the project promises it of the parameters; here of their changes"),
    "torch harness, jax": (
        7e-13,
        "float64 rounding on both sides, of steps down to nothing but decay (2.2e-13, the eigenbasis's first "
        "step, with all parts; else 9.1e-14, polar express)",
    ),
    "baselines float64, oracle": (
        4e-14,
        "float64 rounding, amplified by inverse roots (1.3e-14, shampoo-wide)",
    ),
    "baselines float32, oracle": (3e-5, "the same in float32 (1.0e-5, shampoo-wide; 2.9e-6 without roots)"),
    "harness float64, oracle": (
        7e-13,
        "float64 rounding over 13 steps, amplified by bias correction and by bases (2.2e-13, all parts)",
    ),
    "zoo float64, oracle": (5e-12, "float64 rounding over 200 steps (1.6e-12, velo)"),
    "minimal, jax": (1.2e-6, "float32 rounding on both sides (3.7e-7, celo2-base wide)"),
    "minimal, jax, orthogonalized": (7e-6, "the same, amplified by Newton–Schulz (2.4e-6, celo2 stack)"),
    "minimal, torch float64": (2e-14, "float64 rounding on both sides (6.4e-15, celo2 tall)"),
    "track, torch float64": (2.5e-14, "float64 rounding on both sides, over three steps (8.0e-15, up)"),
    "algoperf, jax": (
        1.6e-4,
        "float32 sums over two devices in place of one, amplified where gradients nearly cancel (5.4e-5, "
        "celo2_base convolution)",
    ),
    "algoperf, torch": (2.8e-5, "float32 rounding, amplified by Newton–Schulz (9.3e-6, transformer)"),
    "algoperf, zoo": (2e-6, "float32 rounding of a parameter's sum with its change (6.5e-7, celo)"),
    "pes, reference": (1e-6, "float32 sums over K steps on both sides (2.3e-7, no_resets w)"),
    "pes oracle, reference": (1e-6, "float32 sums over K steps in the reference (2.3e-7)"),
}


def tolerance(name: str) -> float:
    """The tolerance of one comparison."""
    return TOLERANCES[name][0]


def relative_error(actual: ArrayLike, expected: ArrayLike) -> float:
    """max |actual - expected| / max |expected|, the denominator at least `NEARLY_ZERO`; NaN is an error."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {actual.shape} and {expected.shape}.")
    if actual.size == 0:
        return 0.0
    error = np.max(np.abs(actual - expected)) / max(np.max(np.abs(expected)), NEARLY_ZERO)
    return float("inf") if np.isnan(error) else float(error)
