"""PES estimates the gradient of a whole run from truncations that are shorter than it.

The problem: a point moves by θ each step from the origin, its loss is `½ |x - target|²`, and a run is
reset after `RUN` steps. Losses are quadratic in θ, so antithetic estimates have no smoothing bias, and
the gradient of the loss at age a (before the a-th move) is `a (a θ - target)`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.meta import pes

RUN = 6  # steps between resets
TRUNCATION = 4  # steps of an estimate: resets fall inside
NUM_TRUNCATIONS = 3  # two whole runs
SIGMA = 0.1
BATCHES, PAIRS = 200, 100
THETA = {"v": jnp.array([0.3, -0.2])}
TARGET = jnp.array([1.0, 0.5])


def _unroll(theta: Array, position: Array, age: Array) -> tuple[Array, Array, Array, Array]:
    """One truncation of one run: position, age, losses `(K,)` and resets `(K,)`."""

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        position, age = carry
        is_done = age >= RUN
        position, age = jnp.where(is_done, 0.0, position), jnp.where(is_done, 0, age)
        loss = 0.5 * jnp.sum((position - TARGET) ** 2)
        return (position + theta, age + 1), (loss, is_done)

    (position, age), (losses, is_done) = jax.lax.scan(step, (position, age), None, TRUNCATION)
    return position, age, losses, is_done


def _estimate_run(key: Array, *, persistent: bool) -> Array:
    """Sum over the truncations of K times the estimate: the gradient of the sum of the losses."""
    positions, ages = jnp.zeros((PAIRS, 2, 2)), jnp.zeros((PAIRS, 2), jnp.int32)
    accumulator = {"v": jnp.zeros((PAIRS, 2))}
    total = jnp.zeros(2)
    unroll = jax.vmap(jax.vmap(_unroll))
    for truncation_key in jax.random.split(key, NUM_TRUNCATIONS):
        noise = pes.sample_perturbations(truncation_key, THETA, SIGMA, PAIRS)
        thetas = pes.antithetic(THETA, noise)["v"]
        positions, ages, losses, is_done = unroll(thetas, positions, ages)
        if not persistent:
            accumulator = jax.tree.map(jnp.zeros_like, accumulator)
        found = pes.estimate(losses[:, 0].T, losses[:, 1].T, is_done[:, 0].T, noise, accumulator, sigma=SIGMA)
        accumulator = found.accumulator
        total = total + TRUNCATION * found.gradient["v"]
    return total


def _mean_and_standard_error(*, persistent: bool) -> tuple[np.ndarray, np.ndarray]:
    keys = jax.random.split(jax.random.key(0), BATCHES)
    estimates = np.asarray(jax.jit(jax.vmap(lambda key: _estimate_run(key, persistent=persistent)))(keys))
    return estimates.mean(axis=0), estimates.std(axis=0, ddof=1) / np.sqrt(BATCHES)


def _exact() -> np.ndarray:
    ages = np.arange(RUN)[:, None]
    per_run = (ages * (ages * np.asarray(THETA["v"]) - np.asarray(TARGET))).sum(axis=0)
    return per_run * (TRUNCATION * NUM_TRUNCATIONS / RUN)


def test_pes_is_unbiased_over_whole_runs() -> None:
    mean, error = _mean_and_standard_error(persistent=True)
    exact = _exact()
    assert (error < 0.1 * np.abs(exact)).all()  # else the next line would prove nothing
    assert (np.abs(mean - exact) < 5.0 * error).all(), (mean, exact, error)


def test_without_the_accumulator_the_estimate_is_biased() -> None:
    """The check above can fail: truncated evolution strategies are far outside of it."""
    mean, error = _mean_and_standard_error(persistent=False)
    assert (np.abs(mean - _exact()) > 5.0 * error).any(), (mean, _exact(), error)


def test_perturbations_have_the_stated_spread() -> None:
    noise = pes.sample_perturbations(jax.random.key(1), THETA, SIGMA, 20_000)["v"]
    standard_error = SIGMA / np.sqrt(2 * noise.size)  # of a standard deviation
    assert abs(float(noise.std()) - SIGMA) < 5 * standard_error
    thetas = pes.antithetic(THETA, {"v": noise})["v"]
    assert thetas.shape == (20_000, 2, 2)
    np.testing.assert_allclose(thetas.mean(axis=1), np.broadcast_to(THETA["v"], noise.shape), atol=1e-6)
