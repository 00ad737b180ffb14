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


def _runs(values: list[float]) -> InnerState:
    zeros = jnp.zeros(len(values), jnp.int32)
    return InnerState({"w": jnp.asarray(values)[:, None, None]}, (), {}, {}, zeros, zeros)


def _losses(means: list[float], **changes: Sequence[int]) -> Losses:
    """Losses of two steps of each pair, alike under both signs."""
    both = jnp.broadcast_to(jnp.asarray(means), (2, len(means)))
    never = jnp.zeros(both.shape, bool)
    given = {name: jnp.asarray([values, values]) for name, values in changes.items()}
    fields = {"is_done": never, "diverged": jnp.zeros(both.shape, jnp.int32), "is_last": never} | given
    return Losses(both, both, is_running=~never, weight=jnp.ones(both.shape), **fields)


def _update(buffer: resume.Buffer, state: float, losses: Losses) -> resume.Buffer:
    pairs = losses.positive.shape[1]
    return resume.update(buffer, (_runs([state] * pairs),), {"v": jnp.full((pairs, 1), state)}, losses)


def _saved(buffer: resume.Buffer) -> list[float]:
    values = buffer.runs[0].params["w"].ravel()
    np.testing.assert_array_equal(values, buffer.accumulator["v"].ravel())
    return [float(x) if filled else -1.0 for x, filled in zip(values, buffer.is_filled, strict=True)]


def _empty(pairs: int) -> resume.Buffer:
    return resume.init((_runs([0.0] * pairs),), {"v": jnp.zeros((pairs, 1))})


def test_a_state_is_saved_where_the_loss_rises_more_than_ever() -> None:
    """Pairs: a loss that falls, one that rises and then rises less, one that rises ever more."""
    buffer = _update(_empty(3), 1.0, _losses([2.0, 2.0, 2.0]))
    assert _saved(buffer) == [-1, -1, -1]
    buffer = _update(buffer, 2.0, _losses([1.5, 3.0, 2.5]))
    assert _saved(buffer) == [-1, 2, 2]
    buffer = _update(buffer, 3.0, _losses([1.0, 2.5, 3.0]))
    assert _saved(buffer) == [-1, 2, 3]


def test_a_state_is_saved_where_the_run_ends_unless_it_has_diverged() -> None:
    ends, lost = [True, True, False], [0, 1, 0]
    buffer = _update(_empty(3), 1.0, _losses([2.0, 2.0, 2.0], is_last=ends, diverged=lost))
    assert _saved(buffer) == [1, -1, -1]


def test_a_new_run_is_measured_by_its_own_losses() -> None:
    """The old run's lowest loss was 1; the new one begins at 3, and has done worse only at 4."""
    buffer = _update(_empty(1), 1.0, _losses([1.0]))
    buffer = _update(buffer, 2.0, _losses([3.0], is_done=[True]))
    assert _saved(buffer) == [-1]
    buffer = _update(buffer, 3.0, _losses([2.9]))
    assert _saved(buffer) == [-1]
    buffer = _update(buffer, 4.0, _losses([4.0]))
    assert _saved(buffer) == [4]


def test_an_empty_buffer_resumes_nothing_and_a_full_one_as_often_as_said() -> None:
    keys = jax.random.split(jax.random.key(0), 2000)
    buffer = _empty(2000)
    drawn = [
        resume.draw(keys, buffer._replace(is_filled=jnp.full(2000, filled)), CONFIG)[0]
        for filled in (False, True)
    ]
    none, some = (restored.resuming for restored in drawn if restored is not None)
    assert not none.any()
    share = float(some.mean())
    assert share == pytest.approx(0.7, abs=5 * (0.7 * 0.3 / 2000) ** 0.5)


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
        wanted = continued if from_saved else alone
        equal = jax.tree.map(
            lambda a, b, pair=pair: np.testing.assert_array_equal(a[pair], b[pair]),
            found.params,
            wanted.params,
        )
        del equal
        assert found.step[pair] == wanted.step[pair]
    grown = saved.step + alone.length  # the length that a new task would have had is added
    np.testing.assert_array_equal(found.length, jnp.where(resuming, grown, alone.length))


@pytest.mark.parametrize(
    "options",
    [{"estimator": "pes", "reverse_steps": 2}, {"estimator": "noise-reuse-es"}],
    ids=["pes-and-reverse", "noise-reuse-es"],
)
def test_runs_outgrow_the_longest_and_a_restored_state_goes_on_the_same(
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
    whole, parts = (outer_steps(state, data, 10)[0] for state in (half, restored))
    for mine, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert int(whole.inner[0].length.max()) > config.max_unroll + config.truncation_length
    assert whole.buffer is not None
    assert whole.buffer.is_filled.all()


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
