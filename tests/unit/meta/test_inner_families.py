"""Families in one run: how pairs are shared out, and two iterations of a mix on two devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.commands import meta_train as command
from celo2.meta import outer, pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner import families as groups
from celo2.meta.inner import unroll
from celo2.meta.inner.families import describe, load_datasets, stack_data
from celo2.meta.parsing import parse_shares, split_by_weight
from celo2.meta.run.folder import RunFiles
from celo2.meta.run.metrics import METRICS_FILE, read_metrics
from celo2.tasks.families import FAMILIES
from helpers.momentum import use_momentum

MIX = MetaConfig(
    families=("mlp:2", "rnn", "quadratic"),  # one of each source: images, text, the task's own problem
    datasets=("digits", "mnist"),
    tasks_per_set=4,
    truncation_length=2,
    min_unroll=1000,
    max_unroll=1000,
    meta_loss="held-out",
    batch_size=16,
    level="none",
)


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (32, {"a": 1}, {"a": 32}),
        (32, {"a": 1, "b": 1}, {"a": 16, "b": 16}),
        (10, {"a": 1, "b": 1, "c": 1}, {"a": 4, "b": 3, "c": 3}),
        (10, {"a": 1, "b": 2, "c": 4}, {"a": 1, "b": 3, "c": 6}),  # quotas 1.43, 2.86, 5.71
        (32, {"a": 1000, "b": 1, "c": 1}, {"a": 30, "b": 1, "c": 1}),
        (4, {"a": 0.01, "b": 1, "c": 1.25, "d": 1.5}, {"a": 1, "b": 1, "c": 1, "d": 1}),
        (8, {"a": 20, "b": 20, "c": 1}, {"a": 4, "b": 3, "c": 1}),
        (2, {"a": 1, "b": 1e9}, {"a": 1, "b": 1}),
    ],
)
def test_pairs_are_shared_out_by_weight(total: int, weights: dict, expected: dict) -> None:
    assert split_by_weight(total, weights) == expected


def test_every_share_is_within_one_of_its_quota_and_all_pairs_are_given() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = {
            str(index): weight for index, weight in enumerate(rng.uniform(0.5, 2.0, rng.integers(1, 9)))
        }
        total = int(rng.integers(4 * len(weights), 64))
        counts = split_by_weight(total, weights)
        assert sum(counts.values()) == total
        for name, weight in weights.items():
            assert abs(counts[name] - total * weight / sum(weights.values())) < 1


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 pairs are too few for 3 families"):
        split_by_weight(2, {"a": 1, "b": 1, "c": 1})


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (("mlpp",), "families: unknown family 'mlpp'; did you mean 'mlp'"),
        (("mlp", "mlp:2"), "'mlp' occurs twice"),
        (("mlp:0",), "positive weight, got 'mlp:0'"),
        (("mlp:x",), "positive weight, got 'mlp:x'"),
        (("mlp:",), "positive weight, got 'mlp:'"),
        (("mlp:inf",), "positive weight, got 'mlp:inf'"),
        ((), "families: at least one of mlp"),
        (tuple(FAMILIES), "families: 4 pairs are too few for 8 families"),
    ],
)
def test_unusable_families_are_refused(families: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaConfig(families=families, tasks_per_set=1)


def test_weights_are_read_from_entries() -> None:
    assert parse_shares(["rnn:0.5", "mlp"], ["mlp", "rnn"]) == {"rnn": 0.5, "mlp": 1.0}


def test_published_recipe_has_eight_pairs_of_each_set() -> None:
    config = MetaConfig()
    (index,) = groups.set_index(config)
    np.testing.assert_array_equal(index, np.repeat(np.arange(4), 8))
    assert groups.task_names(config) == ("mlp/fashion-mnist", "mlp/mnist", "mlp/digits", "mlp/patches")
    assert groups.task_sizes(config) == (8, 8, 8, 8)


def test_image_families_take_the_sets_in_turn() -> None:
    config = MetaConfig(
        families=("conv", "transformer", "mlp:2", "quadratic"), datasets=("a", "b", "c"), tasks_per_set=5
    )
    assert config.pairs_by_family == {"conv": 3, "transformer": 3, "mlp": 6, "quadratic": 3}
    config = dataclasses.replace(config, families=("conv:2", "transformer", "mlp:2"))
    assert config.pairs_by_family == {"conv": 6, "transformer": 3, "mlp": 6}
    found = dict(zip(groups.task_names(config), groups.task_sizes(config), strict=True))
    assert found == {
        "conv/a": 2,
        "conv/b": 2,
        "conv/c": 2,
        "transformer/text": 3,
        "mlp/a": 2,
        "mlp/b": 2,
        "mlp/c": 2,
    }
    few = dataclasses.replace(config, families=("conv", "mlp"), tasks_per_set=1)  # two pairs, then one
    assert groups.task_names(few) == ("conv/a", "conv/b", "mlp/c")


def test_devices_that_cannot_share_a_family_are_refused() -> None:
    config = MetaConfig(families=("mlp:3", "conv"), datasets=("a",), tasks_per_set=12)
    groups.check_devices(config, 3)
    with pytest.raises(
        ValueError, match=r"'mlp' has 9 of the 12 pairs, which 2 devices cannot.*tasks_per_set"
    ):
        groups.check_devices(config, 2)


@pytest.mark.parametrize(
    ("counts", "processes", "cores", "expected"),
    [((32,), 1, 2, 2), ((9, 3), 1, 2, 1), ((9, 3), 1, 4, 3), ((8, 4), 1, 64, 4), ((8, 4), 2, 64, 2)],
)
def test_command_takes_devices_that_share_every_family(
    monkeypatch, counts, processes: int, cores: int, expected: int
) -> None:
    monkeypatch.setattr(command, "num_cores", lambda: cores)
    assert command._default_devices(counts, processes) == expected


@pytest.mark.parametrize(("weight", "devices"), [(3, 2), (7, 1)])
def test_command_says_when_a_family_costs_devices(monkeypatch, capsys, weight: int, devices: int) -> None:
    monkeypatch.setattr(command, "num_cores", lambda: 2)
    recipe = MetaConfig(families=(f"mlp:{weight}", "conv"), tasks_per_set=2)
    assert command._choose_devices(recipe, 1) == devices
    said = capsys.readouterr().out
    assert said == ("" if devices == 2 else "devices: 1; 2 could share 8 pairs, but not mlp 7, conv 1\n")


def test_only_what_the_families_draw_from_is_loaded() -> None:
    datasets = load_datasets(MetaConfig(families=("quadratic", "regression"), datasets=("none-such",)))
    assert datasets == {}
    assert describe(datasets) == "none"
    config = MetaConfig(families=("rnn",), datasets=("none-such",))
    datasets = load_datasets(config)
    assert list(datasets) == ["text"]
    assert describe(datasets).endswith(" bytes)")
    data = stack_data(datasets, config)
    assert data.images is None
    assert data.text is not None
    assert data.text.text.shape == (int(data.text.sizes.sum()),)


def test_metrics_of_a_run_without_families_are_read(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(
        '{"step": 1, "loss_per_set": {"mnist": 2.0}}\n{"step": 2, "loss_per_task": {"mlp/mnist": 1.0}}\n{"st'
    )
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss_per_task": {"mlp/mnist": 2.0}},
        {"step": 2, "loss_per_task": {"mlp/mnist": 1.0}},
    ]


# A run of three families; the inner optimizer is momentum, to compile fast.


@pytest.fixture
def momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    use_momentum(monkeypatch, lambda theta: 1.0 + jnp.sum(theta["b2"]))


@pytest.mark.usefixtures("standard_promotion", "momentum")
def test_families_in_one_run_on_two_devices(tmp_path: Path) -> None:
    """Two iterations, the second also from a checkpoint: one program, finite, no pair left out."""
    mesh = outer.make_mesh()
    assert mesh.size == 2
    outer_steps = outer.make_outer_steps(MIX, mesh)
    data = stack_data(load_datasets(MIX), MIX)
    start = outer.init(MIX, mesh)
    before = jax.device_get(start)
    files = RunFiles(tmp_path / "run")
    files.start(MIX, resume=False)
    state, _ = outer_steps(start, data, 1)
    files.save(state, MIX, {})
    state, found = outer_steps(state, data, 1)
    metrics = jax.tree.map(lambda numbers: numbers[0], found)
    assert outer_steps._cache_size() == 1  # type: ignore[attr-defined]

    restored = files.restore(MIX, mesh)
    files.close()
    assert restored is not None
    resumed, _ = outer_steps(restored, data, 1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))

    assert int(metrics.skipped) == 0
    assert float(metrics.diverged) == 0.0
    losses = dict(zip(groups.task_names(MIX), np.asarray(metrics.loss_per_task).tolist(), strict=True))
    assert list(losses) == ["mlp/digits", "mlp/mnist", "rnn/text", "quadratic"]
    assert all(1.0 < loss < 3.4 for loss in losses.values()), losses
    assert float(metrics.meta_loss) == pytest.approx(
        np.average(list(losses.values()), weights=groups.task_sizes(MIX)), rel=1e-5
    )
    assert state.accumulator["b2"].shape == (MIX.num_pairs, 3)
    for name, old, new in zip(MIX.pairs_by_family, before.inner, jax.device_get(state.inner), strict=True):
        np.testing.assert_array_equal(new.step, old.step + 4, err_msg=name)
        jax.tree.map(np.testing.assert_array_equal, new.problem, old.problem)  # fixed during a run
        for array in jax.tree.leaves(new.params):
            assert array.shape[:2] == (MIX.pairs_by_family[name], 2)
        changed = jax.tree.map(lambda a, b: (a != b).any((*range(2, a.ndim),)), new.params, old.params)
        assert np.any(jax.tree.leaves(changed), axis=0).all(), name  # every run of every pair


@pytest.mark.usefixtures("standard_promotion", "momentum")
def test_a_new_run_has_a_new_problem() -> None:
    """Two pairs of quadratics: the first begins anew, the second goes on."""
    config = MetaConfig(families=("quadratic",), truncation_length=1, batch_size=4, min_unroll=100)
    keys = jax.random.split(jax.random.key(0), 2)
    theta = {"b2": jnp.zeros(3)}

    @jax.jit
    def run(state: unroll.InnerState) -> unroll.InnerState:
        thetas = pes.antithetic(theta, {"b2": jnp.zeros((2, 3))})
        index = jnp.zeros(2, jnp.int32)
        more = jax.random.split(jax.random.key(1), 2)
        return unroll.unroll(thetas, state, more, index, None, config, family="quadratic")[0]

    before = unroll.init_pairs(keys, theta, config, family="quadratic")
    before = before._replace(step=jnp.array([100, 5]), length=jnp.array([100, 100]))
    after = run(before)
    changed = np.asarray(before.problem["optimum"] != after.problem["optimum"]).any((1, 2))
    np.testing.assert_array_equal(changed, [True, False])
    np.testing.assert_array_equal(after.step, [1, 6])
