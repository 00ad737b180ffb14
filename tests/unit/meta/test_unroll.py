"""Inner runs of antithetic pairs: resets, clipping, what both signs share."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.meta import pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner.optimizer import make_inner_optimizer
from celo2.meta.inner.theta import init_theta
from celo2.meta.inner.unroll import (
    LEAST_LOSS,
    InnerState,
    Losses,
    init_pairs,
    make_family,
    scale_loss,
    unroll,
)
from celo2.tasks.families.base import FamilyData, stack_datasets
from celo2.tasks.vision.datasets import load_image_sets

CONFIG = MetaConfig(
    datasets=("digits", "mnist"),
    tasks_per_set=3,
    truncation_length=8,
    min_unroll=8,
    max_unroll=20,
    batch_size=16,
)
SETS = jnp.repeat(jnp.arange(2), CONFIG.tasks_per_set)


@pytest.fixture(scope="module")
def data() -> FamilyData:
    return stack_datasets(list(load_image_sets(CONFIG.datasets).values()))


@pytest.fixture(scope="module")
def theta() -> pes.Theta:
    return init_theta(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def compiled_unroll():
    return jax.jit(lambda thetas, state, keys, data: unroll(thetas, state, keys, SETS, data, CONFIG))


@pytest.fixture(scope="module")
def start(theta: pes.Theta) -> InnerState:
    return init_pairs(jax.random.split(jax.random.key(1), CONFIG.num_pairs), theta, CONFIG)


def _keys(seed: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), CONFIG.num_pairs)


def _thetas(theta: pes.Theta, sigma: float) -> pes.Theta:
    return pes.antithetic(theta, pes.sample_perturbations(jax.random.key(2), theta, sigma, CONFIG.num_pairs))


def test_first_runs_are_staggered(theta: pes.Theta) -> None:
    keys = jax.random.split(jax.random.key(3), 64)
    state = jax.vmap(lambda key: init_pairs(key[None], theta, CONFIG))(keys)
    step, length = np.asarray(state.step).ravel(), np.asarray(state.length).ravel()
    assert length.min() >= CONFIG.min_unroll
    assert length.max() <= CONFIG.max_unroll
    assert (step < length).all()
    assert len(np.unique(step)) > 5


def test_run_is_reset_when_its_length_is_reached(theta, data, compiled_unroll, start) -> None:
    state, losses = compiled_unroll(_thetas(theta, 0.01), start, _keys(4), data)
    for pair in range(CONFIG.num_pairs):
        left = int(start.length[pair] - start.step[pair])
        expected = np.zeros(CONFIG.truncation_length, bool)
        if left < CONFIG.truncation_length:
            expected[left] = True
        np.testing.assert_array_equal(losses.is_done[:, pair], expected)
        taken = CONFIG.truncation_length - left if expected.any() else int(start.step[pair]) + len(expected)
        assert int(state.step[pair]) == taken
    assert losses.is_done.any()
    assert not losses.is_done.any(axis=0).all()


def test_both_signs_see_the_same_task_and_batches(theta, data, compiled_unroll, start) -> None:
    _, losses = compiled_unroll(_thetas(theta, 0.0), start, _keys(5), data)
    np.testing.assert_array_equal(losses.positive, losses.negative)
    _, losses = compiled_unroll(_thetas(theta, 0.1), start, _keys(5), data)
    assert (np.asarray(losses.positive) != np.asarray(losses.negative)).any(axis=0).all()


def test_losses_of_broken_weights_are_clipped_and_counted(theta, data, compiled_unroll, start) -> None:
    broken = jax.tree.map(lambda array: jnp.full_like(array, jnp.nan), _thetas(theta, 0.01))
    _, losses = compiled_unroll(broken, start, _keys(6), data)
    ceiling = make_family(CONFIG).loss_ceiling
    assert ceiling == pytest.approx(1.5 * np.log(10))
    last = Losses(*(np.asarray(array)[-1] for array in losses))
    still_running = ~np.asarray(losses.is_done)[-1]  # a run that has just been reset has seen no update
    assert still_running.any()
    np.testing.assert_allclose(last.positive[still_running], ceiling)
    np.testing.assert_array_equal(last.diverged[still_running], 2)


ONE_STEP = dataclasses.replace(CONFIG, variant="celo2-base", truncation_length=1, datasets=("digits",))


def _rms_of_one_step(theta: pes.Theta, data: FamilyData, config: MetaConfig, step: list[int]) -> np.ndarray:
    """Change of the first kernel in the network's units by each run, at these steps of runs of ten."""
    num_runs = len(step)
    state = init_pairs(jax.random.split(jax.random.key(1), num_runs), theta, config)
    state = state._replace(step=jnp.array(step), length=jnp.full(num_runs, 10))
    thetas = pes.antithetic(theta, pes.sample_perturbations(jax.random.key(2), theta, 0.0, num_runs))
    after, _ = jax.jit(partial(unroll, config=config))(
        thetas, state, _keys(7)[:num_runs], jnp.zeros(num_runs, int), data
    )
    kernel, moved, scale = (jax.tree.leaves(tree)[1] for tree in (state.params, after.params, state.scales))
    rms = np.sqrt(np.mean(np.square(moved - kernel), axis=(2, 3)))
    np.testing.assert_array_equal(rms[:, 0], rms[:, 1])
    return rms[:, 0] * np.asarray(scale)


def test_cosine_schedule_shrinks_the_steps_of_a_run(theta: pes.Theta, data) -> None:
    config = dataclasses.replace(ONE_STEP, inner_schedule="cosine", level="none")
    rms = _rms_of_one_step(theta, data, config, [0, 5, 9])
    expected = CONFIG.inner_learning_rate * np.array([1.0, 0.5, 0.5 + 0.5 * np.cos(0.9 * np.pi)])
    np.testing.assert_allclose(rms, expected, rtol=5e-3)  # parameters round


def test_scales_leave_a_rate_in_the_networks_units_alone(theta: pes.Theta, data) -> None:
    config = dataclasses.replace(ONE_STEP, rate_units="network", scale_range=(0.1, 10.0))
    rms = _rms_of_one_step(theta, data, config, [0, 0, 0])
    np.testing.assert_allclose(rms, CONFIG.inner_learning_rate, rtol=5e-3)  # parameters round


def test_rates_are_spread_around_the_inner_one(theta: pes.Theta, data) -> None:
    config = dataclasses.replace(ONE_STEP, rate_units="network", rate_spread=4.0)
    factors = _rms_of_one_step(theta, data, config, [0, 0, 0]) / CONFIG.inner_learning_rate
    assert factors.min() >= 0.25 * (1 - 5e-3)
    assert factors.max() <= 4.0 * (1 + 5e-3)
    assert np.ptp(np.log(factors)) > 0.1


def test_rate_of_a_family_is_multiplied_by_its_factor(theta: pes.Theta, data) -> None:
    config = dataclasses.replace(ONE_STEP, level="none", family_rates=("mlp:3",))
    rms = _rms_of_one_step(theta, data, config, [0, 0, 0])
    np.testing.assert_allclose(rms, 3.0 * CONFIG.inner_learning_rate, rtol=5e-3)  # parameters round


def test_lengths_follow_the_law_and_runs_under_one_perturbation_end_with_a_truncation(theta) -> None:
    keys = jax.random.split(jax.random.key(3), 512)
    options = {"truncation_length": 10, "min_unroll": 10, "max_unroll": 1000}
    means = {}
    for law in ("uniform", "log-uniform"):
        for estimator, unit in (("pes", 1), ("noise-reuse-es", 10)):
            config = dataclasses.replace(CONFIG, **options, unroll_law=law, estimator=estimator)
            states = jax.vmap(lambda key, config=config: init_pairs(key[None], theta, config))(keys)
            step, length = np.asarray(states.step).ravel(), np.asarray(states.length).ravel()
            assert (length % unit == 0).all()
            assert (step % unit == 0).all()
            assert (step < length).all()
            assert len(np.unique(step)) > 20
            means[law] = config.mean_unroll, length.mean(), length.std() / np.sqrt(len(length))
    for expected, mean, error in means.values():
        assert abs(mean - expected) < 5 * error + 10


def test_log_losses_are_the_logarithms_of_the_clipped_ones(theta, data, compiled_unroll, start) -> None:
    config = dataclasses.replace(CONFIG, loss_scale="log")
    thetas = _thetas(theta, 0.01)
    _, plain = compiled_unroll(thetas, start, _keys(5), data)
    _, logs = jax.jit(partial(unroll, set_index=SETS, data=data, config=config))(thetas, start, _keys(5))
    np.testing.assert_allclose(logs.positive, np.log(plain.positive), atol=1e-4)
    assert float(scale_loss(jnp.zeros(()), 3.0, config)) == pytest.approx(np.log(LEAST_LOSS))


def test_inner_gradients_are_clipped_to_a_norm(theta: pes.Theta, data) -> None:
    """Vectors show it, whose step from rest is `m · rsqrt(v + 1e-8)`: of tiny gradients it is tiny."""
    moves = []
    for clip in (0.0, 1e-6):
        config = dataclasses.replace(ONE_STEP, variant="celo2", level="none", inner_clip=clip)
        state = init_pairs(jax.random.split(jax.random.key(1), 2), theta, config)
        state = state._replace(step=jnp.zeros(2, jnp.int32), length=jnp.full(2, 10))
        thetas = pes.antithetic(theta, pes.sample_perturbations(jax.random.key(2), theta, 0.0, 2))
        arguments = thetas, state, _keys(7)[:2], jnp.zeros(2, int), data
        after, _ = jax.jit(partial(unroll, config=config))(*arguments)
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), after.params, state.params)
        moves.append(float(moved["layer_0"]["bias"]))
    assert moves[0] > 1e-3
    assert moves[1] <= 0.02 * 0.1 * 1e-6 / 1e-4  # the rate, the momentum's share, the clip, the root's floor


def test_celo2_trains_vectors_by_uncorrected_adam(theta: pes.Theta) -> None:
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    grads = {"kernel": jnp.ones((4, 3)), "bias": jnp.array([0.1, -0.2, 0.0])}
    optimizer = make_inner_optimizer(theta, CONFIG)
    updates: Any
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    momentum, rms = 0.1 * np.asarray(grads["bias"]), 0.05 * np.asarray(grads["bias"]) ** 2
    expected = -CONFIG.inner_learning_rate * CONFIG.adamw_lr_scale * momentum / np.sqrt(rms + 1e-8)
    np.testing.assert_allclose(updates["bias"], expected, rtol=1e-5)  # float32 roundings
    assert float(jnp.sqrt(jnp.mean(updates["kernel"] ** 2))) == pytest.approx(
        CONFIG.inner_learning_rate, rel=1e-4
    )
