"""Whole inner runs, and which losses count; the inner optimizer is momentum, to compile fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.meta import outer, pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner import unroll as truncation
from celo2.meta.inner.unroll import InnerState, Losses
from celo2.tasks.families.base import FamilyData, TaskData, stack_datasets
from celo2.tasks.vision.datasets import load_image_sets
from helpers.momentum import use_momentum

CONFIG = MetaConfig(
    estimator="full-es",
    datasets=("digits", "mnist"),
    tasks_per_set=2,
    truncation_length=4,
    min_unroll=4,
    max_unroll=40,
    level="none",
    batch_size=4,
)
SETS = jnp.repeat(jnp.arange(2), CONFIG.tasks_per_set)
THETA = {"rate": jnp.float32(30.0)}  # times the inner learning rate


@pytest.fixture(autouse=True)
def momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    use_momentum(monkeypatch, lambda theta: theta["rate"])


@pytest.fixture(scope="module")
def data() -> FamilyData:
    return stack_datasets(list(load_image_sets(CONFIG.datasets).values()))


@cache
def _compiled(config: MetaConfig) -> Callable[[jax.Array, FamilyData], tuple[InnerState, Losses]]:
    unroll = truncation.unroll_full if config.estimator == "full-es" else truncation.unroll

    @jax.jit
    def run(keys: jax.Array, data: FamilyData) -> tuple[InnerState, Losses]:
        state = truncation.init_pairs(keys, THETA, config)
        state = state._replace(step=state.length)  # so that `unroll` begins with a reset
        noise = pes.sample_perturbations(jax.random.key(2), THETA, 10.0, config.num_pairs)
        return unroll(pes.antithetic(THETA, noise), state, keys, SETS, data, config)

    return run


def _run(config: MetaConfig, data: FamilyData, *, length: int | None = None) -> tuple[InnerState, Losses]:
    """The losses by either function, every run beginning at its start; of given length, if one is given."""
    if length is not None:
        config = dataclasses.replace(config, min_unroll=length, max_unroll=length)
    return _compiled(config)(jax.random.split(jax.random.key(1), config.num_pairs), data)


def test_full_unroll_is_what_a_truncation_of_its_length_is(data: FamilyData) -> None:
    truncated = dataclasses.replace(CONFIG, estimator="pes", truncation_length=6, min_unroll=6)
    _, expected = _run(truncated, data, length=6)
    _, found = _run(CONFIG, data, length=6)  # pieces of 4
    assert found.positive.shape == (8, CONFIG.num_pairs)
    for name in ("positive", "negative", "weight"):
        np.testing.assert_allclose(getattr(found, name)[:6], getattr(expected, name), rtol=1e-6)
    assert (np.asarray(found.positive) != np.asarray(found.negative))[1:].all()
    assert not np.asarray(found.weight[6:]).any()


def test_full_runs_have_their_own_lengths_and_weigh_the_same(data: FamilyData) -> None:
    state, losses = _run(CONFIG, data)
    lengths = np.asarray(state.length)
    assert len(np.unique(lengths)) > 1
    np.testing.assert_array_equal(np.count_nonzero(losses.weight, axis=0), lengths)
    np.testing.assert_allclose(np.sum(losses.weight, axis=0), 1.0, rtol=1e-6)


def test_full_unroll_stops_when_the_longest_run_has_ended(data: FamilyData) -> None:
    state, losses = _run(CONFIG, data)
    taken = -(-int(state.length.max()) // CONFIG.truncation_length) * CONFIG.truncation_length
    assert taken < CONFIG.max_unroll
    np.testing.assert_array_equal(state.step, taken)
    assert not np.asarray(losses.positive[taken:]).any()


@pytest.mark.parametrize("estimator", ["pes", "full-es"])
def test_final_meta_loss_counts_the_last_step_of_each_run(data: FamilyData, estimator: str) -> None:
    config = dataclasses.replace(CONFIG, estimator=estimator, meta_loss="final")
    if estimator == "full-es":
        state, losses = _run(config, data)
        expected = np.asarray(state.length)[None] - 1 == np.arange(losses.weight.shape[0])[:, None]
    else:  # all runs begin at the first step, and the first four are seen
        _, losses = _run(config, data, length=4)
        expected = np.broadcast_to(np.arange(4)[:, None] == 3, losses.weight.shape)
    np.testing.assert_array_equal(losses.weight, expected)


@pytest.mark.parametrize("estimator", ["pes", "full-es"])
def test_end_meta_loss_is_the_mean_of_the_last_fifth_of_each_run(data: FamilyData, estimator: str) -> None:
    config = dataclasses.replace(CONFIG, estimator=estimator, meta_loss="end")
    if estimator == "full-es":
        state, losses = _run(config, data)
        lengths, total = np.asarray(state.length), 1.0
    else:  # one truncation of 20 steps with whole runs of 20, as if there were two of them on average
        config = dataclasses.replace(config, truncation_length=20, min_unroll=20, max_unroll=60)
        config = dataclasses.replace(config, unroll_law="uniform")
        weight = truncation.loss_weight(jnp.arange(20), jnp.int32(20), config)
        losses = Losses(weight, weight, weight, weight, weight, weight, weight[:, None])
        lengths, total = np.array([20]), 2.0
    counted = np.maximum(1, np.round(0.2 * lengths))
    steps = np.arange(losses.weight.shape[0])[:, None]
    expected = (steps >= lengths - counted) & (steps < lengths)
    np.testing.assert_array_equal(np.asarray(losses.weight) > 0, expected)
    np.testing.assert_allclose(np.sum(losses.weight, axis=0), total, rtol=1e-6)


def test_parameters_stay_after_the_end_of_a_run(data: FamilyData) -> None:
    """So that what happens there, at a cosine's rising rate, has no part in a derivative.

    With longer segments, all runs take more steps after their end.
    """
    ends = [
        _run(dataclasses.replace(CONFIG, truncation_length=length), data)[0]
        for length in (CONFIG.truncation_length, CONFIG.max_unroll)
    ]
    assert int(ends[0].step[0]) < int(ends[1].step[0])
    for few, many in zip(*(jax.tree.leaves(state.params) for state in ends), strict=True):
        np.testing.assert_allclose(few, many, rtol=1e-5, atol=1e-7)


def test_held_out_losses_are_of_images_that_nothing_is_trained_on(data: FamilyData) -> None:
    config = dataclasses.replace(CONFIG, meta_loss="held-out")
    both = stack_datasets(list(load_image_sets(CONFIG.datasets).values()), splits=config.splits)
    dark = both._replace(images=both.images.at[both.offsets[2] :].set(0))  # the held-out splits
    state, losses = _run(config, both)
    dark_state, dark_losses = _run(config, dark)
    np.testing.assert_allclose(dark_losses.positive[0], np.log(10), rtol=1e-6)  # as biases begin at zero
    assert (np.abs(np.asarray(losses.positive[0]) - np.log(10)) > 1e-3).all()
    jax.tree.map(np.testing.assert_array_equal, dark_state.params, state.params)
    assert (np.asarray(losses.positive) != np.asarray(losses.negative))[1:4].all()


def test_held_out_meta_loss_without_held_out_images_is_refused(data: FamilyData) -> None:
    with pytest.raises(ValueError, match="use stack_datasets"):
        _run(dataclasses.replace(CONFIG, meta_loss="held-out"), data)


@pytest.mark.usefixtures("standard_promotion")
def test_outer_iteration_with_whole_runs_in_the_other_options(data: FamilyData, monkeypatch) -> None:
    """Sharded over the test's devices, from held-out losses to the update of theta."""
    monkeypatch.setattr(outer, "init_theta", lambda *_: dict(THETA))
    options = {"meta_loss": "held-out", "mixture": ("none", "tensor:0.5:2"), "loss_difference": "sign"}
    config = dataclasses.replace(CONFIG, **options)
    mesh = outer.make_mesh()
    both = stack_datasets(list(load_image_sets(CONFIG.datasets).values()), splits=config.splits)
    state = outer.init(config, mesh)
    before = float(state.theta["rate"])
    state, found = outer.make_outer_steps(config, mesh)(state, TaskData(images=both), 1)
    metrics = jax.tree.map(lambda numbers: numbers[0], found)
    assert abs(float(state.theta["rate"]) - before) == pytest.approx(config.outer_learning_rate, rel=0.01)
    assert int(metrics.ended_runs) == 2 * config.num_pairs
    assert 0.0 < float(metrics.meta_loss) < 3.46
    assert not np.asarray(state.accumulator["rate"]).any()
