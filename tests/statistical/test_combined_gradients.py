"""Inverse-variance weights: two unbiased estimates of known variances, for two numbers of theta."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.meta import reverse

REPEATS, PAIRS = 4000, 64
EXACT = np.array([0.3, -0.2])
ES_DEVIATION, REVERSE_DEVIATION = np.array([1.0, 0.2]), np.array([0.5, 1.0])  # of one pair
ES_VARIANCE, REVERSE_VARIANCE = (np.square(d) / PAIRS for d in (ES_DEVIATION, REVERSE_DEVIATION))


@pytest.fixture(scope="module")
def found() -> np.ndarray:
    """Combined estimates, `(REPEATS, 2)`."""
    noise = np.random.default_rng(0).normal(size=(2, REPEATS, PAIRS, 2))
    es, backward = (
        {"v": jnp.asarray(EXACT + deviation * own, jnp.float32)}
        for deviation, own in zip((ES_DEVIATION, REVERSE_DEVIATION), noise, strict=True)
    )
    return np.asarray(jax.jit(jax.vmap(reverse.combine))(es, backward)[0]["v"], float)


def test_combination_of_unbiased_estimates_is_unbiased(found: np.ndarray) -> None:
    error = found.std(axis=0, ddof=1) / np.sqrt(REPEATS)
    assert (error < 0.01 * np.abs(EXACT)).all()  # else the next line would prove nothing
    assert (np.abs(found.mean(axis=0) - EXACT) < 5.0 * error).all(), (found.mean(axis=0), error)


def test_combination_has_less_variance_than_either_estimate(found: np.ndarray) -> None:
    """`1 / (1/v₁ + 1/v₂)`, and up to a thirtieth more for weights that come from 64 pairs."""
    variance = found.var(axis=0, ddof=1)
    least = 1.0 / (1.0 / ES_VARIANCE + 1.0 / REVERSE_VARIANCE)
    standard_error = least * np.sqrt(2.0 / REPEATS)
    assert (np.abs(variance - least) < 5.0 * standard_error + least / 30.0).all(), (variance, least)
    assert (variance + 5.0 * standard_error < ES_VARIANCE)[0]
    assert (variance < np.minimum(ES_VARIANCE, REVERSE_VARIANCE)).all(), variance
