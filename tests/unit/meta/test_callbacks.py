"""A run with callbacks: probes and loggers beside the loop, through kills and resumptions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2 import load_checkpoint
from celo2.commands import meta_train as command
from celo2.meta import outer
from celo2.meta.config import MetaConfig
from celo2.meta.outer import OuterMetrics, OuterState
from celo2.meta.probe import ProbeConfig
from celo2.meta.run import callbacks
from celo2.meta.run.loggers import Loggers
from celo2.meta.train import TrainOptions, meta_train
from helpers.probe_records import make_record

CONFIG = MetaConfig(datasets=("digits",))
OPTIONS = {"outer_steps": 40, "checkpoint_every": 15, "probe": ProbeConfig()}
BEST_STEP = 20


class Killed(BaseException):
    """In place of `kill -9`: nothing of the run catches it."""


@pytest.fixture(autouse=True)
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Instant iterations that write their number into theta; a function that kills the run in one of them."""
    limit: list[int | None] = [None]
    shapes = CONFIG.rule.weight_shapes()

    def state_at(count: int) -> OuterState:
        theta = {name: jnp.full(shape, count, jnp.float32) for name, shape in shapes.items()}
        return OuterState(theta, {}, {}, {}, jnp.asarray(count, jnp.int32))  # type: ignore[arg-type]

    def steps(state: OuterState, _, num_steps: int) -> tuple[OuterState, OuterMetrics]:
        last = int(state.count) + num_steps
        if limit[0] is not None and last >= limit[0]:
            raise Killed
        arrays: Any = (np.full((outer.MAX_STEPS, 1), 2.0), *[np.zeros(outer.MAX_STEPS)] * 10)
        return state_at(last), OuterMetrics(*arrays)

    monkeypatch.setattr(outer, "init", lambda *_: state_at(0))
    monkeypatch.setattr(outer, "make_outer_steps", lambda *_: steps)
    return lambda step: limit.__setitem__(0, step)


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Instant probes, the best of which is at `BEST_STEP`; returns the iterations that were probed."""
    steps: list[int] = []

    class InstantProbe:
        @classmethod
        def of_variant(cls, *_):
            return cls()

        def measure(self, theta):
            steps.append(int(theta["b0"][0]))
            return {"quadratic": make_record(1.0 + abs(steps[-1] - BEST_STEP))}

    monkeypatch.setattr(callbacks, "Probe", InstantProbe)
    return steps


def probes_of(folder: Path) -> list[dict]:
    lines = (folder / "probes.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


def run(folder: Path, **options) -> None:
    meta_train(CONFIG, TrainOptions(out=folder, **{**OPTIONS, "probe_every": 10, **options}))


def test_probes_are_taken_at_their_interval_and_choose(tmp_path: Path, probed: list[int], capsys) -> None:
    run(tmp_path)
    assert probed == [0, 10, 20, 30, 40]
    assert [probe["step"] for probe in probes_of(tmp_path)] == probed
    best = load_checkpoint(tmp_path / "best.safetensors")
    assert best.provenance["outer_steps"] == str(BEST_STEP)
    assert best.arrays["b0"][0] == BEST_STEP
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("probe at")]
    assert [line.split(":")[0] for line in printed] == [f"probe at {step}" for step in probed]
    assert [line.endswith("the best so far") for line in printed] == [True, True, True, False, False]


@pytest.mark.parametrize("killed_at", [1, 11, 20, 37])
def test_killed_and_resumed_run_has_the_same_probes(
    tmp_path: Path, probed: list[int], kill_at, killed_at: int
) -> None:
    run(tmp_path / "whole")
    kill_at(killed_at)
    with pytest.raises(Killed):
        run(tmp_path / "killed")
    kill_at(None)
    run(tmp_path / "killed", resume=True)
    assert probes_of(tmp_path / "killed") == probes_of(tmp_path / "whole")
    whole, killed = (load_checkpoint(tmp_path / name / "best.safetensors") for name in ("whole", "killed"))
    assert whole.provenance == killed.provenance
    assert probed[5:] == [0, 10, 20, 30, 40]  # none was taken twice: each has its own checkpoint


def test_run_killed_in_a_probe_takes_it_again(
    tmp_path: Path, probed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        take = callbacks.ProbeLog.take

        def killed(log, step, weights):
            if step == 20:
                raise Killed
            return take(log, step, weights)

        broken.setattr(callbacks.ProbeLog, "take", killed)
        with pytest.raises(Killed):
            run(tmp_path)
    assert [probe["step"] for probe in probes_of(tmp_path)] == [0, 10]
    run(tmp_path, resume=True)
    assert [probe["step"] for probe in probes_of(tmp_path)] == [0, 10, 20, 30, 40]


def test_probes_that_begin_late_are_compared_with_the_start_too(tmp_path: Path, probed: list[int]) -> None:
    run(tmp_path, outer_steps=15, probe_every=0)
    assert not (tmp_path / "probes.jsonl").exists()
    run(tmp_path, resume=True)
    assert probed == [0, 20, 30, 40]
    assert probes_of(tmp_path)[0]["score"] == 0.0
    records = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == list(range(1, 41))


def test_resumed_run_with_other_probes_is_refused(tmp_path: Path) -> None:
    run(tmp_path, outer_steps=10)
    with pytest.raises(ValueError, match="was probed with other settings"):
        run(tmp_path, resume=True, probe=ProbeConfig(seeds=3))


def test_refused_resumption_leaves_the_probes_alone(tmp_path: Path, kill_at) -> None:
    kill_at(38)
    with pytest.raises(Killed):
        run(tmp_path, checkpoint_every=25)
    before = {name: (tmp_path / name).read_bytes() for name in ("probes.jsonl", "best.safetensors")}
    for step in (30, 25):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))  # so that a probe would be dropped
    with pytest.raises(ValueError, match="probed with other settings"):
        run(tmp_path, resume=True, probe=ProbeConfig(tasks=("gpt",)))
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_best_weights_that_a_kill_left_out_are_copied(tmp_path: Path) -> None:
    run(tmp_path)
    best = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").unlink()
    run(tmp_path, resume=True, outer_steps=41)
    assert (tmp_path / "best.safetensors").read_bytes() == best


def test_numbers_and_probes_reach_the_loggers_which_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    seen: list[dict] = []

    class Failing:
        closed = False

        def write(self, records) -> None:
            seen.extend(records)
            raise ConnectionError("down")

        def close(self) -> None:
            self.closed = True

    logger = Failing()
    monkeypatch.setattr(callbacks, "open_loggers", lambda *_, **__: Loggers({"net": logger}))
    run(tmp_path, outer_steps=10)
    steps = [record["step"] for record in seen]
    assert steps == sorted(steps)
    assert [record["probe"]["score"] for record in seen if "probe" in record] == [
        0.0,
        pytest.approx(-0.6466, abs=1e-4),
    ]
    assert [record["step"] for record in seen if "meta_loss" in record] == list(range(1, 11))
    assert logger.closed
    assert capsys.readouterr().err.count("net failed (ConnectionError: down)") == 1
    assert (tmp_path / "weights" / "celo2-000010.safetensors").exists()


def test_probes_of_a_run_on_several_processes_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes, got 10; .*celo2 probe OUT"):
        meta_train(CONFIG, TrainOptions(out=tmp_path / "run", probe_every=10, outer_steps=10))
    assert not (tmp_path / "run").exists()


def test_command_passes_its_words_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainOptions] = []
    monkeypatch.setattr(command, "meta_train", lambda _, options: asked.append(options))
    words = ["--out", str(tmp_path), "--probe-every", "7", "--probe-tasks", "gpt"]
    more = ["--probe-set", "choosing", "--probe-seeds", "2", "--sinks", "wandb"]
    assert command.main([*words, *more, "--devices", "1"]) == 0
    assert asked[0].probe_every == 7
    assert asked[0].sinks == ("wandb",)
    assert asked[0].probe == ProbeConfig(task_set="choosing", tasks=("gpt",), seeds=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--probe-every", "-1"], "probe_every must not be negative"),
        (["--probe-tasks", "gtp"], "did you mean 'gpt'"),
        (["--probe-set", "chosing"], "did you mean 'choosing'"),
        (["--sinks", "wandb"], "pip install 'celo2[watch]'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_unusable_words_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: list[str], message: str
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    out = tmp_path / "run"
    assert command.main([*words, "--datasets", "digits", "--out", str(out), "--devices", "1"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
