"""The loop of a run, and what it does if meta-gradients go wrong; no iteration is computed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import optax
import orbax.checkpoint as ocp
import pytest

from celo2.commands import meta_train as command
from celo2.meta.run.errors import MetaGradientError, SkipLimit
from celo2.meta.train import TrainOptions, meta_train
from helpers.instant_outer import CONFIG, InstantOuter

OPTIONS = {"max_skipped": 0.2, "skip_window": 10, "outer_steps": 30, "checkpoint_every": 5}


@pytest.fixture
def given(instant_outer: InstantOuter) -> dict[str, list]:
    """What the loop hands on."""
    return instant_outer.given


@pytest.fixture
def skip(instant_outer: InstantOuter) -> Callable[..., None]:
    """A function that says at which iterations the meta-gradient is not finite."""
    return lambda *iterations: instant_outer.bad.update(iterations)


def _records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_few_skipped_gradients_are_counted_and_shown(skip, tmp_path: Path, capsys) -> None:
    skip(3, 4, 14, 15)
    meta_train(CONFIG, TrainOptions(out=tmp_path, **OPTIONS))
    records = _records(tmp_path)
    assert [record["step"] for record in records if record["skipped"]] == [3, 4, 14, 15]
    assert records[2]["grad_norm"] is None
    assert (records[0]["ended_runs"], records[0]["diverged_runs"]) == (4, 1)
    assert "4 skipped, 30 of 120 runs diverged" in capsys.readouterr().out


def test_too_many_stop_the_run_with_its_state_saved(skip, tmp_path: Path) -> None:
    """At the end of the call in which they came, of at most `checkpoint_every` iterations."""
    skip(3, 6, 12)
    with pytest.raises(MetaGradientError, match=r"iteration 12, 3 of the last 10 .* more than 20 %"):
        meta_train(CONFIG, TrainOptions(out=tmp_path, **OPTIONS))
    last = len(_records(tmp_path))
    assert 12 <= last <= 15
    assert [record["step"] for record in _records(tmp_path)] == list(range(1, last + 1))
    assert (tmp_path / "weights" / f"celo2-{last:06}.safetensors").exists()


def test_resumed_run_remembers_what_was_skipped(skip, tmp_path: Path) -> None:
    skip(3, 4, 11)
    meta_train(CONFIG, TrainOptions(out=tmp_path, **{**OPTIONS, "outer_steps": 5}))
    with pytest.raises(MetaGradientError, match="iteration 11"):
        meta_train(CONFIG, TrainOptions(out=tmp_path, resume=True, **OPTIONS))


def test_checkpoints_that_do_not_fit_are_kept(skip, tmp_path: Path, monkeypatch) -> None:
    """Those of another version, say, whose arrays have other shapes."""
    meta_train(CONFIG, TrainOptions(out=tmp_path, **{**OPTIONS, "outer_steps": 5}))

    def restore(*_, **__):
        raise ValueError("requested shape (1, 8) is not compatible with the stored shape (8,)")

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    with pytest.raises(ValueError, match=r"no checkpoint of .* --out"):
        meta_train(CONFIG, TrainOptions(out=tmp_path, resume=True, **OPTIONS))
    assert (tmp_path / "checkpoints" / "5").exists()
    assert len(_records(tmp_path)) == 5


def test_devices_that_cannot_share_the_pairs_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 of the 3 pairs, which 2 devices"):
        meta_train(
            dataclasses.replace(CONFIG, tasks_per_set=3), TrainOptions(out=tmp_path / "run", outer_steps=1)
        )
    assert not (tmp_path / "run").exists()


def test_command_reports_a_stopped_run(skip, tmp_path: Path, capsys) -> None:
    skip(1)
    words = ["--datasets", "digits", "--out", str(tmp_path / "run"), "--max-skipped", "0", "--devices", "1"]
    assert command.main(words) == 1
    assert "1 of the last 200 meta-gradients were not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "skipped", "stops_at"),
    [
        (0.0, [2], 2),
        (0.5, [1, 2], None),
        (0.5, [1, 2, 3], 3),
        (0.5, [1, 2, 5, 6], None),  # the window has moved on
        (1.0, [1, 2, 3, 4, 5, 6], None),
    ],
)
def test_share_is_that_of_a_whole_window(share: float, skipped: list[int], stops_at: int | None) -> None:
    limit = SkipLimit(share, 4)
    faults = [bool(limit.check([{"step": step, "skipped": int(step in skipped)}])) for step in range(1, 8)]
    assert (faults.index(True) + 1 if any(faults) else None) == stops_at


def test_only_a_skipped_gradient_stops_a_resumed_run() -> None:
    limit = SkipLimit(0.5, 4, [{"skipped": 1}] * 4)
    assert not limit.check([{"step": 5, "skipped": 0}])
    assert limit.check([{"step": 6, "skipped": 1}, {"step": 7, "skipped": 0}])


@pytest.mark.parametrize(
    "options", [{"max_skipped": 1.5}, {"skip_window": 0}], ids=lambda options: next(iter(options))
)
def test_limits_are_checked(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainOptions(out=tmp_path, outer_steps=1, **options)


def test_chain_reaches_every_place_that_needs_it(skip, given: dict[str, list], tmp_path: Path) -> None:
    config, chain = dataclasses.replace(CONFIG, outer_optimizer="custom"), optax.sgd(0.1)
    options = TrainOptions(out=tmp_path, outer_steps=1)
    meta_train(config, options, outer_optimizer=chain)
    meta_train(config, dataclasses.replace(options, outer_steps=2, resume=True), outer_optimizer=chain)
    assert given["optimizer"] == [chain] * 4  # start and step; restored state and step


@pytest.mark.parametrize(("meta_loss", "num_sets"), [("training", 1), ("held-out", 2)])
def test_held_out_splits_are_loaded_if_they_count(
    skip, given, tmp_path: Path, meta_loss, num_sets: int
) -> None:
    config = dataclasses.replace(CONFIG, meta_loss=meta_loss)
    meta_train(config, TrainOptions(out=tmp_path, outer_steps=1))
    assert given["data"][0].images.sizes.shape == (num_sets,)
