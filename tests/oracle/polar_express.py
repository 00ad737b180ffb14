"""The coefficients of Polar Express (arXiv 2505.16932), computed from their definition.

Of all odd polynomials of degree 5, each has the least `max |1 - p(s)|` over the interval [l, u] in which the
ones before it leave the singular values: the paper shows that the composition is then the best too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOWEST = 1e-3  # of the singular values, over their norm
CUSHION = 0.02407327424182761  # the paper's: l / u is taken to be at least this
SAFETY = 1.01  # p(s / 1.01) instead of p(s), but in the last iteration
FLAT = 1e-6  # width of [l, u] over u from which on rounding hides the four extrema

Array = NDArray[np.float64]


def best_quintic(l: float, u: float) -> Any:  # noqa: E741 - the paper's letters
    """Remez' algorithm: the best polynomial's error has one size and alternating signs at four points."""
    if u - l < FLAT * u:
        return np.array([15, -10, 3]) / 8 / np.power(u, [1, 3, 5])  # Taylor's, at u
    points = np.linspace(l, u, 4)
    coefficients = np.zeros(3)
    for _ in range(100):
        system = np.column_stack([points[:, None] ** [1, 3, 5], [1, -1, 1, -1]])
        coefficients = np.linalg.solve(system, np.ones(4))[:3]
        c0, c1, c2 = coefficients
        inner = np.sqrt(np.sort(np.roots([5 * c2, 3 * c1, c0]).real))  # where p'(s) = 0
        if np.allclose(inner, points[1:3], rtol=1e-14, atol=0):
            break
        points[1:3] = inner
    return coefficients


def evaluate(coefficients: Array, s: Any) -> Any:
    """Returns `p(s)`."""
    c0, c1, c2 = coefficients
    return c0 * s + c1 * np.power(s, 3) + c2 * np.power(s, 5)


def compose(count: int) -> list[Array]:
    """Returns the coefficients of the first iterations, without the safety factor."""
    low, high, composed = LOWEST, 1.0, []
    for _ in range(count):
        coefficients = best_quintic(max(low, CUSHION * high), high)
        coefficients = coefficients * 2 / (evaluate(coefficients, low) + evaluate(coefficients, high))
        low = evaluate(coefficients, low)
        high = 2 - low
        composed.append(coefficients)
    return composed


def coefficients(count: int) -> Array:
    """Returns the coefficients of all iterations, `(count, 3)`."""
    composed = np.array(compose(count))
    composed[:-1] /= np.power(SAFETY, [1, 3, 5])
    return composed
