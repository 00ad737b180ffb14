"""`celo2 meta-train` as a user runs it: progress, files, `kill -9`, `--resume`, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import kill_when, run

from celo2 import load_checkpoint

STEPS, EVERY = 200, 20
SETS = ["--datasets", "digits", "mnist", "--tasks-per-set", "1"]
UNROLL = ["--truncation-length", "5", "--min-unroll", "5", "--max-unroll", "12"]


def _command(out: Path, *more: str, steps: int = STEPS) -> list[str]:
    words = ["--outer-steps", str(steps), "--checkpoint-every", str(EVERY), "--out", str(out)]
    return [sys.executable, "-m", "celo2", "meta-train", *SETS, *UNROLL, *words, *more]


def _records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert f"iteration {STEPS}/{STEPS}" in run(_command(out), environment).out
    return out


def _final_weights(out: Path) -> Path:
    return out / "weights" / f"celo2-{STEPS:06d}.safetensors"


def test_run_leaves_weights_metrics_and_recipe(whole_run: Path) -> None:
    weights = load_checkpoint(_final_weights(whole_run))
    assert weights.config.variant == "celo2"
    assert weights.provenance["outer_steps"] == str(STEPS)
    assert "--datasets digits mnist" in weights.provenance["command"]
    records = _records(whole_run)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert all(0.0 < record["meta_loss"] < 3.46 for record in records)
    assert sum(record["resets"] for record in records) > 0
    assert json.loads((whole_run / "config.json").read_text())["truncation_length"] == 5


def test_killed_run_resumes_to_the_same_weights(
    whole_run: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "run"
    kill_when((out / "weights").exists, _command(out), environment)
    assert not _final_weights(out).exists(), "the run was over before it could be killed"
    run(_command(out, "--resume"), environment)
    assert _final_weights(out).read_bytes() == _final_weights(whole_run).read_bytes()
    for resumed, whole in zip(_records(out), _records(whole_run), strict=True):
        assert (resumed["step"], resumed["meta_loss"]) == (whole["step"], whole["meta_loss"])


def test_damaged_last_checkpoint_falls_back_to_the_one_before(
    whole_run: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "run"
    subprocess.run(["cp", "-r", str(whole_run), str(out)], check=True)
    for file in (out / "checkpoints" / str(STEPS)).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = run(_command(out, "--resume", steps=STEPS + EVERY), environment).out
    assert f"checkpoint {STEPS} is not readable" in said
    assert f"iterations {STEPS - EVERY + 1} to {STEPS + EVERY}" in said
    again, before = (load_checkpoint(_final_weights(folder)).arrays for folder in (out, whole_run))
    for name, array in before.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "already holds a run"),
        (("--resume", "--outer-clip", "0.5"), "another recipe (outer_clip: 0.0 before, 0.5 now)"),
    ],
    ids=["no resume", "other recipe"],
)
def test_folder_of_another_run_is_refused(
    whole_run: Path, environment: dict[str, str], words: tuple[str, ...], message: str
) -> None:
    assert message in run(_command(whole_run, *words), environment, status=2).err


def test_nothing_to_resume_is_said(tmp_path: Path, environment: dict[str, str]) -> None:
    said = run(_command(tmp_path / "none", "--resume"), environment, status=2).err
    assert "nothing to resume" in said


def test_run_keeps_the_weights_that_it_starts_from(
    whole_run: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(_final_weights(whole_run).read_bytes())
    command = _command(tmp_path / "run", "--start", str(start), steps=EVERY)
    run(command, environment)
    start.unlink()
    command[command.index("--outer-steps") + 1] = str(2 * EVERY)
    run([*command, "--resume"], environment)
    made = load_checkpoint(tmp_path / "run" / "weights" / f"celo2-{2 * EVERY:06d}.safetensors").provenance
    assert made["start_outer_steps"] == str(STEPS)
    assert len(made["start_sha256"]) == 64
