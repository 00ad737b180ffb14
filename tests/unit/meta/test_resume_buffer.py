"""The buffer of saved states: what is saved, how a run continues, exact resumption of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.meta import outer, pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner import resume
from celo2.meta.inner import unroll as unroll_module
from celo2.meta.inner.families import load_datasets, stack_data
from celo2.meta.inner.theta import init_theta
from celo2.meta.inner.unroll import InnerState, Losses, Restart, init_pairs, unroll
from celo2.meta.run.folder import RunFiles
from celo2.tasks.families.images import ImageMLPFamily
from helpers.quick import SMALL_RULE

pytestmark = pytest.mark.usefixtures("standard_promotion")  # for Optax's AdamW

CONFIG = MetaConfig(
    datasets=("digits",),
    tasks_per_set=4,
    truncation_length=4,
    min_unroll=4,
    max_unroll=10,
    batch_size=8,
    start="adam",
    resume_probability=0.7,
    rule_options=tuple(f"{name}={list(x) if isinstance(x, tuple) else x}" for name, x in SMALL_RULE.items()),
)


def _runs(values: Sequence[float], steps: Sequence[int], length: int = 10) -> InnerState:
    params = {"w": jnp.asarray(values, jnp.float32)[:, None, None]}
    return InnerState(params, (), {}, {}, jnp.asarray(steps), jnp.full(len(steps), length))


def _losses(means: Sequence[float], is_done: Sequence[bool] = ()) -> Losses:
    """Losses of two steps of each pair, alike under both signs; a reset comes before the first."""
    both = jnp.broadcast_to(jnp.asarray(means), (2, len(means)))
    done = jnp.zeros(both.shape, bool).at[0].set(jnp.asarray(is_done or [False] * len(means)))
    unused = jnp.zeros_like(both)
    return Losses(both, both, done, unused, unused, unused, unused)


class _Pairs:
    """Four pairs of two groups; a state is named by its parameters and by its accumulator."""

    config = dataclasses.replace(CONFIG, families=("mlp:3", "deep-mlp:1"))

    def __init__(self) -> None:
        self.buffer = resume.init(self._split([0.0] * 4, [0] * 4), {"v": jnp.zeros((4, 1))})

    def _split(self, values: Sequence[float], steps: Sequence[int]) -> tuple[InnerState, InnerState]:
        return _runs(values[:3], steps[:3]), _runs(values[3:], steps[3:])

    def train(self, state: float, losses: Losses) -> list[float]:
        runs, accumulator = self._split([state] * 4, [0] * 4), {"v": jnp.full((4, 1), state)}
        self.buffer = resume.save_rising(self.buffer, runs, accumulator, losses, self.config)
        return self.saved

    def end(self, values: Sequence[float], steps: Sequence[int], count: int = 1) -> list[float]:
        accumulator = {"v": jnp.asarray(values)[:, None]}
        self.buffer = resume.save_ending(
            self.buffer, self._split(values, steps), accumulator, jnp.asarray(count), self.config
        )
        return self.saved

    @property
    def saved(self) -> list[float]:
        values = np.concatenate([group.params["w"].ravel() for group in self.buffer.runs])
        np.testing.assert_array_equal(values, self.buffer.accumulator["v"].ravel())
        return [float(x) if filled else -1.0 for x, filled in zip(values, self.buffer.is_filled, strict=True)]


def test_a_state_is_saved_where_the_loss_rises_more_than_ever() -> None:
    """Pairs: a loss that falls, one that rises and then rises less, two that rise ever more."""
    pairs = _Pairs()
    assert pairs.train(1.0, _losses([2.0, 2.0, 2.0, 2.0])) == [-1, -1, -1, -1]
    assert pairs.train(2.0, _losses([1.5, 3.0, 2.5, 2.1])) == [-1, 2, 2, 2]
    assert pairs.train(3.0, _losses([1.0, 2.5, 3.0, 2.2])) == [-1, 2, 3, 3]


def test_a_new_run_is_measured_by_its_own_losses() -> None:
    """The old run's lowest loss was 1; the new one begins at 3, and has done worse only at 4."""
    pairs = _Pairs()
    pairs.train(1.0, _losses([1.0] * 4))
    assert pairs.train(2.0, _losses([3.0] * 4, is_done=[True] * 4)) == [-1] * 4
    assert pairs.train(3.0, _losses([2.9] * 4)) == [-1] * 4
    assert pairs.train(4.0, _losses([4.0] * 4)) == [4] * 4


def test_the_state_before_the_end_is_saved_unless_the_run_has_done_worse_or_is_not_finite() -> None:
    """Of length 10, in truncations of 4: two pairs end in the next one, one goes on, one has ended."""
    pairs = _Pairs()
    assert pairs.end([4.0] * 4, [6] * 4, count=0) == [-1] * 4  # before the first iteration
    assert pairs.end([5.0] * 4, [6, 5, 9, 10]) == [5, -1, 5, -1]
    assert pairs.end([np.nan, 6.0, 7.0, 8.0], [6, 6, 5, 9]) == [5, 6, 5, 8]
    pairs.train(1.0, _losses([1.0] * 4))
    pairs.train(2.0, _losses([1.5, 0.5, 1.5, 0.5]))
    assert pairs.end([9.0] * 4, [6] * 4) == [2, 9, 2, 9]


def test_an_empty_buffer_resumes_nothing_and_a_full_one_as_often_as_said() -> None:
    config = dataclasses.replace(CONFIG, tasks_per_set=2000)
    keys = jax.random.split(jax.random.key(0), 2000)
    runs = _runs([0.0] * 2000, [0] * 2000)
    buffer = resume.init((runs,), {"v": jnp.zeros((2000, 1))})
    none, (restart,) = resume.draw(keys, buffer, config)
    assert not none.resuming.any()
    assert not restart.resuming.any()
    some, (restart,) = resume.draw(keys, buffer._replace(is_filled=~buffer.is_filled), config)
    np.testing.assert_array_equal(some.resuming, restart.resuming)
    assert float(some.resuming.mean()) == pytest.approx(0.7, abs=5 * (0.7 * 0.3 / 2000) ** 0.5)


def test_an_ended_run_continues_from_the_saved_state_and_becomes_longer() -> None:
    theta = init_theta(jax.random.key(0), CONFIG)
    data = stack_data(load_datasets(CONFIG), CONFIG).images
    noise = pes.sample_perturbations(jax.random.key(1), theta, 0.01, 4)
    keys, sets = jax.random.split(jax.random.key(2), 4), jnp.zeros(4, jnp.int32)
    saved = init_pairs(jax.random.split(jax.random.key(3), 4), theta, CONFIG)
    saved = saved._replace(step=saved.step + 20, length=saved.length + 30)
    ended = init_pairs(jax.random.split(jax.random.key(4), 4), theta, CONFIG)
    ended = ended._replace(step=ended.length)
    resuming = jnp.asarray([True, False, True, False])

    @jax.jit
    def run(state: InnerState, restart: Restart) -> tuple[InnerState, Losses]:
        return unroll(pes.antithetic(theta, noise), state, keys, sets, data, CONFIG, restart=restart)

    none = jnp.zeros(4, bool)
    found, losses = run(ended, Restart(saved, resuming))
    continued, alone = (run(state, Restart(saved, none))[0] for state in (saved, ended))
    assert losses.is_done[0].all()
    for pair, from_saved in enumerate(resuming):
        wanted = (continued if from_saved else alone)._replace(length=found.length)
        for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(mine[pair], theirs[pair])
    grown = saved.step + alone.length  # the length that a new task would have had is added
    np.testing.assert_array_equal(found.length, jnp.where(resuming, grown, alone.length))


@pytest.mark.parametrize(
    "options",
    [{"estimator": "pes", "reverse_steps": 2}, {"estimator": "noise-reuse-es"}],
    ids=["pes-and-reverse", "noise-reuse-es"],
)
def test_runs_continue_and_a_restored_state_goes_on_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(
        unroll_module,
        "make_family",
        lambda config, _: ImageMLPFamily(widths=(64, 10), batch_size=config.batch_size, level="none"),
    )
    config = dataclasses.replace(CONFIG, **options)
    mesh, data = outer.make_mesh(), stack_data(load_datasets(config), config)
    outer_steps = outer.make_outer_steps(config, mesh)
    half, _ = outer_steps(outer.init(config, mesh), data, 10)
    with RunFiles(tmp_path / "run") as files:
        files.start(config, resume=False)
        files.save(half, config, {})
        restored = files.restore(config, mesh)
    assert restored is not None
    (whole, metrics), (parts, _) = (outer_steps(state, data, 10) for state in (half, restored))
    for mine, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    resets, resumed = (int(counts[:10].sum()) for counts in (metrics.resets, metrics.resumed))
    assert 0.4 * resets < resumed < resets  # of about fifteen, 0.7 are expected
    assert whole.buffer is not None
    assert whole.buffer.is_filled.all()
    perturbations = np.concatenate(
        [np.reshape(a, (4, -1)) for a in whole.buffer.accumulator.values()], axis=1
    )
    assert (np.abs(perturbations).max(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume_probability": 1.0}, "in \\[0, 1\\)"),
        ({"resume_probability": -0.1}, "in \\[0, 1\\)"),
        ({"resume_probability": 0.5, "estimator": "full-es"}, "none continues"),
    ],
    ids=["one", "negative", "whole-runs"],
)
def test_recipes_that_cannot_be_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaConfig(**options)
