"""A probed run as a user has it: real training, real probes, `kill -9`, `--resume`, report, `celo2 probe`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import kill_when, run

from celo2 import load_checkpoint
from helpers.probe_records import TINY_SET

RECIPE = [
    "--variant",
    "celo2-base",
    "--start",
    "adam",
    "--datasets",
    "digits",
    "--tasks-per-set",
    "2",
]
UNROLL = ["--truncation-length", "5", "--min-unroll", "5", "--max-unroll", "10"]
STEPS, EVERY = 40, 10


@pytest.fixture(scope="module")
def task_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("set") / "bowl.toml"
    path.write_text(TINY_SET)
    return str(path)


@pytest.fixture(scope="module")
def command_of(task_set: str) -> Callable[..., list[str]]:
    return lambda out, *more: _command(out, "--probe-set", task_set, *more)


def _command(out: Path, *more: str) -> list[str]:
    words = ["--outer-steps", str(STEPS), "--probe-every", str(EVERY), "--out", str(out), "--devices", "1"]
    return [sys.executable, "-m", "celo2", "meta-train", *RECIPE, *UNROLL, *words, *more]


def _probes(out: Path) -> list[dict]:
    """The probes without the times."""
    probes = [json.loads(line) for line in (out / "probes.jsonl").read_text().splitlines()]
    for probe in probes:
        for timed in (probe, *probe["tasks"].values()):
            assert timed.pop("seconds") > 0
    return probes


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, command_of, environment: dict[str, str]) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert f"probe at {STEPS}: score" in run(command_of(out), environment).out
    return out


def test_best_weights_are_those_of_the_lowest_score(whole_run: Path) -> None:
    probes = _probes(whole_run)
    assert [probe["step"] for probe in probes] == [0, 10, 20, 30, 40]
    assert probes[0]["score"] == 0.0
    assert len({probe["score"] for probe in probes}) == len(probes)  # theta moves, and the probe sees it
    best = min(probes, key=lambda probe: probe["score"])
    chosen = load_checkpoint(whole_run / "best.safetensors")
    assert chosen.provenance["outer_steps"] == str(best["step"])
    assert float(chosen.provenance["probe_score"]) == pytest.approx(best["score"], abs=1e-6)


def test_probes_leave_the_training_alone(whole_run: Path, tmp_path: Path, command_of, environment) -> None:
    command = command_of(tmp_path / "run")
    command[command.index("--probe-every") + 1] = "0"
    run(command, environment)
    name = f"weights/celo2-base-{STEPS:06d}.safetensors"
    watched, alone = (load_checkpoint(folder / name).arrays for folder in (whole_run, tmp_path / "run"))
    for array in watched:
        np.testing.assert_array_equal(watched[array], alone[array])


def test_killed_run_resumes_to_the_same_probes(
    whole_run: Path, tmp_path: Path, command_of, environment
) -> None:
    out = tmp_path / "run"
    weights = out / "weights" / f"celo2-base-{EVERY:06d}.safetensors"
    kill_when(weights.exists, command_of(out), environment)
    assert len(_probes(out)) < STEPS // EVERY + 1, "the run was over before it could be killed"
    run(command_of(out, "--resume"), environment)
    assert _probes(out) == _probes(whole_run)
    assert (out / "best.safetensors").read_bytes() == (whole_run / "best.safetensors").read_bytes()


def test_weights_are_probed_afterwards_as_in_the_run(
    whole_run: Path, tmp_path: Path, task_set: str, environment
) -> None:
    file = tmp_path / "probe.json"
    words = ["adam", str(whole_run), "--variant", "celo2-base", "--json", str(file), "--devices", "1"]
    said = run([sys.executable, "-m", "celo2", "probe", *words, "--set", task_set], environment).err
    start, *found = json.loads(file.read_text())["candidates"]
    assert [row["score"] for row in found] == [probe["score"] for probe in _probes(whole_run)]
    assert (start["name"], start["score"]) == ("adam", 0.0)
    assert start["tasks"]["bowl"]["losses"] == found[0]["tasks"]["bowl"]["losses"]
    assert "celo2-base-000020.safetensors, bowl: " in said
