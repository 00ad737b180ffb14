"""What the estimators expect: PES, the gradient of a whole run from truncations that are shorter than it.

The problem: a point moves by θ each step from the origin, its loss is `½ |x - target|²`, and a run is
reset after `RUN` steps. Losses are quadratic in θ, so antithetic estimates have no smoothing bias, and
the gradient of the loss at age a (before the a-th move) is `a (a θ - target)`.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from celo2.meta import estimators, pes
from celo2.meta.config import Estimator, MetaConfig
from celo2.meta.inner.unroll import InnerState, Losses, loss_weight

RUN = 6  # steps between resets
TRUNCATION = 4  # steps of an estimate: resets fall inside
NUM_TRUNCATIONS = 3  # two whole runs
SIGMA = 0.1
BATCHES, PAIRS = 200, 100
THETA = {"v": jnp.array([0.3, -0.2])}
TARGET = jnp.array([1.0, 0.5])


def _unroll(
    theta: Array, position: Array, age: Array, length: int, run: int
) -> tuple[Array, Array, tuple[Array, ...]]:
    """One truncation of one run: position, age; losses, resets and ages, each `(length,)`."""

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        position, age = carry
        is_done = age >= run
        position, age = jnp.where(is_done, 0.0, position), jnp.where(is_done, 0, age)
        loss = 0.5 * jnp.sum((position - TARGET) ** 2)
        return (position + theta, age + 1), (loss, is_done, age)

    (position, age), measured = jax.lax.scan(step, (position, age), None, length)
    return position, age, measured


def _losses(losses: Array, is_done: Array, ages: Array, config: MetaConfig) -> Losses:
    """Those of `(pairs, 2, steps)`."""
    weight = loss_weight(ages[:, 0].T, jnp.int32(config.max_unroll), config)
    unused = jnp.zeros_like(weight)
    return Losses(losses[:, 0].T, losses[:, 1].T, is_done[:, 0].T, unused, unused, unused, weight)


def _estimate_run(key: Array, config: MetaConfig) -> Array:
    """Sum over the truncations of K times the estimate: the gradient of the sum of the losses."""
    is_full = config.estimator == "full-es"
    run = config.max_unroll
    length, number = (run, 1) if is_full else (TRUNCATION, NUM_TRUNCATIONS)
    positions, ages = jnp.zeros((PAIRS, 2, 2)), jnp.zeros((PAIRS, 2), jnp.int32)
    inner = InnerState(positions, ages, {}, {}, ages[:, 0], jnp.full(PAIRS, run))
    accumulator = {"v": jnp.zeros((PAIRS, 2))}
    total = jnp.zeros(2)
    unroll = jax.vmap(jax.vmap(partial(_unroll, length=length, run=run)))
    for count, truncation_key in enumerate(jax.random.split(key, number)):
        fresh = pes.sample_perturbations(truncation_key, THETA, SIGMA, PAIRS)
        starting = (inner.opt_state[:, 0] >= run) | (count == 0)
        noise = estimators.perturb(fresh, accumulator, starting, config)
        thetas = pes.antithetic(THETA, noise)["v"]
        positions, ages, measured = unroll(thetas, inner.params, inner.opt_state)
        inner = estimators.next_start(inner._replace(params=positions, opt_state=ages), config)
        losses, is_done, ages = measured
        found = estimators.estimate(_losses(losses, is_done, ages, config), noise, accumulator, config)
        accumulator = found.accumulator
        total = total + length * found.gradient["v"]
    return total


@cache
def _mean_and_standard_error(
    estimator: Estimator, run: int = RUN, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    lengths: dict[str, Any] = {"truncation_length": TRUNCATION, "min_unroll": run, "max_unroll": run}
    config = MetaConfig(estimator=estimator, sigma=SIGMA, **lengths, **options)
    keys = jax.random.split(jax.random.key(0), BATCHES)
    estimates = np.asarray(jax.jit(jax.vmap(lambda key: _estimate_run(key, config)))(keys))
    return estimates.mean(axis=0), estimates.std(axis=0, ddof=1) / np.sqrt(BATCHES)


def _exact(ages: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Gradient of the sum of the losses at these ages, if θ has acted in the last `moved` steps of each."""
    return (moved[:, None] * (ages[:, None] * np.asarray(THETA["v"]) - np.asarray(TARGET))).sum(axis=0)


WHOLE_RUN = _exact(np.arange(RUN), np.arange(RUN))
AGES = np.arange(TRUNCATION * NUM_TRUNCATIONS)
SINCE_TRUNCATION = np.minimum(AGES % RUN, AGES % TRUNCATION)


@pytest.mark.parametrize(
    ("estimator", "exact"),
    [
        ("pes", _exact(AGES % RUN, AGES % RUN)),
        ("full-es", WHOLE_RUN),
        ("truncated-es", _exact(AGES % RUN, SINCE_TRUNCATION)),
    ],
    ids=["pes", "full-es", "truncated-es"],
)
def test_estimator_expects_the_gradient_that_it_promises(estimator: Estimator, exact: np.ndarray) -> None:
    mean, error = _mean_and_standard_error(estimator)
    assert (error < 0.1 * np.linalg.norm(exact)).all()  # else the next line would prove nothing
    assert (np.abs(mean - exact) < 5.0 * error).all(), (mean, exact, error)


def test_noise_reuse_expects_the_whole_gradient_with_the_noise_of_pes() -> None:
    """Runs of two truncations and of all three: each ends with one, as the lengths of such a recipe do.

    On this problem the standard errors are 0.96 to 1.03 of PES's.
    """
    for run in (2 * TRUNCATION, NUM_TRUNCATIONS * TRUNCATION):
        mean, error = _mean_and_standard_error("noise-reuse-es", run)
        exact = _exact(AGES % run, AGES % run)
        assert (error < 0.1 * np.linalg.norm(exact)).all()
        assert (np.abs(mean - exact) < 5.0 * error).all(), (mean, exact, error)
        _, larger_error = _mean_and_standard_error("pes", run)
        assert (error < 1.15 * larger_error).all(), (run, error, larger_error)


def test_pes_expects_the_gradient_of_a_run_that_continues_from_a_saved_state() -> None:
    """Two more steps of a run of three, then two of a saved one of four, whose perturbations were others'."""
    config = MetaConfig(
        estimator="pes", sigma=SIGMA, truncation_length=TRUNCATION, min_unroll=RUN, max_unroll=RUN
    )
    is_done = jnp.broadcast_to(jnp.asarray([False, False, True, False])[:, None], (TRUNCATION, PAIRS))

    def estimate_once(key: Array, resumes: bool) -> tuple[Array, Array]:
        old, saved, new = (
            pes.sample_perturbations(noise_key, THETA, SIGMA, PAIRS) for noise_key in jax.random.split(key, 3)
        )

        def loss(sign: int, before: pes.Theta, moves: int, more: int) -> Array:
            theta = THETA["v"][None]
            position = moves * (theta + sign * before["v"]) + more * (theta + sign * new["v"])
            return 0.5 * jnp.sum((position - TARGET[None]) ** 2, axis=-1)

        plan = ((old, 3, 0), (old, 3, 1), (saved, 4, 0), (saved, 4, 1))
        positive, negative = (jnp.stack([loss(sign, *step) for step in plan]) for sign in (1, -1))
        unused, weight = jnp.zeros_like(positive), jnp.full_like(positive, 1 / TRUNCATION)
        losses = Losses(positive, negative, is_done, unused, unused, unused, weight)
        restored = estimators.Restored(jnp.full(PAIRS, resumes), saved)
        found = estimators.estimate(losses, new, old, config, restored)
        expected_sum = saved["v"] + new["v"] if resumes else new["v"]
        return TRUNCATION * found.gradient["v"], jnp.abs(found.accumulator["v"] - expected_sum).max()

    keys = jax.random.split(jax.random.key(3), BATCHES)
    ages = np.array([3, 4, 4, 5])
    for resumes, moved in ((True, ages), (False, np.array([3, 4, 0, 1]))):
        estimates, deviation = jax.jit(jax.vmap(partial(estimate_once, resumes=resumes)))(keys)
        mean, error = np.asarray(estimates.mean(0)), np.asarray(estimates.std(0, ddof=1)) / np.sqrt(BATCHES)
        exact = _exact(ages, moved)
        assert (error < 0.1 * np.linalg.norm(exact)).all()
        assert (np.abs(mean - exact) < 5.0 * error).all(), (mean, exact, error)
        assert float(deviation.max()) == 0.0


@pytest.mark.parametrize("pairs", [4, 64])
def test_signal_to_noise_of_noise_alone_is_one_over_the_pairs_less_one(pairs: int) -> None:
    """And of a signal `s` beside noise of unit variance in each of d numbers, `|s|²/d` more."""
    rng = np.random.default_rng(0)
    found, shifted = [], []
    for _ in range(400):
        noise = rng.normal(size=(pairs, 5))
        for shift, values in ((0.0, found), (0.5, shifted)):
            # losses whose difference times ε is the gradient wanted: ε is one number at a time
            gradients = {f"v{i}": jnp.asarray(noise[:, i] + shift, jnp.float32) for i in range(5)}
            mean = {name: each.mean() for name, each in gradients.items()}
            values.append(float(pes.signal_to_noise(mean, gradients)))
    assert np.mean(found) == pytest.approx(1 / (pairs - 1), rel=0.25)
    assert np.mean(shifted) - np.mean(found) == pytest.approx(0.25 * pairs / (pairs - 1), rel=0.25)


@pytest.mark.parametrize("estimator", ["pes", "full-es"])
def test_final_loss_is_what_is_improved_if_it_alone_counts(estimator: Estimator) -> None:
    """In `NUM_TRUNCATIONS` times K steps, or in one run, final losses weigh as much as all would."""
    mean, error = _mean_and_standard_error(estimator, meta_loss="final")
    num_steps = RUN if estimator == "full-es" else TRUNCATION * NUM_TRUNCATIONS
    exact = num_steps * _exact(np.array([RUN - 1]), np.array([RUN - 1]))
    assert (error < 0.1 * np.linalg.norm(exact)).all()
    assert (np.abs(mean - exact) < 5.0 * error).all(), (mean, exact, error)


def test_truncated_evolution_strategies_are_biased_and_less_noisy() -> None:
    mean, error = _mean_and_standard_error("truncated-es")
    unbiased, larger_error = _mean_and_standard_error("pes")
    assert (np.abs(mean - unbiased) > 5.0 * (error + larger_error)).all(), (mean, unbiased, error)
    assert (error < 0.5 * larger_error).all(), (error, larger_error)


def test_signs_keep_the_direction_and_forget_the_size() -> None:
    """`E[ε sign(g ε)] = σ √(2/π) g/|g|`; a pair's difference is `2 g ε` exactly."""
    scale = 0.5
    mean, error = _mean_and_standard_error("full-es", loss_difference="sign", sign_scale=scale)
    size = RUN * scale * np.sqrt(2 / np.pi) / (2 * SIGMA)
    expected = size * WHOLE_RUN / np.linalg.norm(WHOLE_RUN)
    assert (error < 0.1 * np.linalg.norm(expected)).all()
    assert (np.abs(mean - expected) < 5.0 * error).all(), (mean, expected, error)


def test_perturbations_have_the_stated_spread() -> None:
    noise = pes.sample_perturbations(jax.random.key(1), THETA, SIGMA, 20_000)["v"]
    standard_error = SIGMA / np.sqrt(2 * noise.size)  # of a standard deviation
    assert abs(float(noise.std()) - SIGMA) < 5 * standard_error
    thetas = pes.antithetic(THETA, {"v": noise})["v"]
    assert thetas.shape == (20_000, 2, 2)
    np.testing.assert_allclose(thetas.mean(axis=1), np.broadcast_to(THETA["v"], noise.shape), atol=1e-6)
