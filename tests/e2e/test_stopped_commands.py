"""Commands that Ctrl-C, SIGTERM or SIGHUP ends, also while they compile: one line, the status, no crash."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

MAX_WAIT = 300.0  # seconds; far more than any of these takes
STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
QUICK_META_TRAIN = [sys.executable, str(Path(__file__).with_name("quick_meta_train.py"))]
RECIPE = ["--datasets", "digits", "--tasks-per-set", "4", "--devices", "1", "--outer-steps", "100000"]
UNROLL = ["--truncation-length", "2", "--min-unroll", "2", "--max-unroll", "5", "--checkpoint-every", "10"]


class Run(NamedTuple):
    """A process, and the files with what it prints."""

    process: subprocess.Popen
    out: Path
    err: Path


Start = Callable[..., Run]


@pytest.fixture
def start(signals_heard: None, environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """A function: words → a process in a folder of its own."""
    started: list[Run] = []

    def run(*words: str) -> Run:
        out, err = (tmp_path / f"{len(started)}.{name}" for name in ("out", "err"))
        with out.open("w") as shown, err.open("w") as errors:
            process = subprocess.Popen(words, env=environment, stdout=shown, stderr=errors, cwd=tmp_path)
        started.append(Run(process, out, err))
        return started[-1]

    yield run
    for process, _, _ in started:
        process.kill()
        process.wait()


def _send_when(run: Run, condition: Callable[[], object], *numbers: int) -> int:
    """Sends signals once the condition holds; returns the status."""
    deadline = time.monotonic() + MAX_WAIT
    while not condition():
        assert run.process.poll() is None, run.err.read_text()
        assert time.monotonic() < deadline, run.out.read_text() + run.err.read_text()
        time.sleep(0.01)
    for number in numbers:
        run.process.send_signal(number)
        time.sleep(0.05)
    return run.process.wait(timeout=MAX_WAIT)


def _assert_no_crash(run: Run) -> None:
    printed = run.out.read_text() + run.err.read_text()
    for word in ("Traceback", "Segmentation", "Fatal Python error"):
        assert word not in printed


@pytest.mark.parametrize(("number", "status"), STATUSES.items(), ids=lambda value: str(value))
def test_meta_training_saves_and_says_how_to_go_on(start: Start, tmp_path: Path, number, status) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    run = start(*QUICK_META_TRAIN, *RECIPE, *UNROLL, "--out", "run")
    assert _send_when(run, lambda: metrics.exists() and metrics.read_text(), number) == status
    _assert_no_crash(run)
    notice, line = run.err.read_text().strip().splitlines()
    assert notice.startswith("stopping: ")
    steps = len(metrics.read_text().splitlines())
    assert line.startswith(f"celo2 meta-train: stopped after {steps} iterations; continue with: celo2 ")
    assert (tmp_path / "run" / "checkpoints" / str(steps)).is_dir()
    words = shlex.split(line.partition("continue with: ")[2])[2:]
    again = start(*QUICK_META_TRAIN, *words, "--outer-steps", str(steps + 10))
    assert again.process.wait(timeout=MAX_WAIT) == 0, again.err.read_text()
    found = [json.loads(record)["step"] for record in metrics.read_text().splitlines()]
    assert found == list(range(1, steps + 11))


def test_a_second_interrupt_leaves_the_last_checkpoint(start: Start, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    run = start(*QUICK_META_TRAIN, *RECIPE, *UNROLL, "--out", "run")

    def has_one() -> bool:
        return checkpoints.exists() and any(path.name.isdecimal() for path in checkpoints.iterdir())

    assert _send_when(run, has_one, signal.SIGINT, signal.SIGINT) == 130
    _assert_no_crash(run)
    assert "continue with: celo2 meta-train --resume --out run" in run.err.read_text()
    again = start(*QUICK_META_TRAIN, "--resume", "--out", "run", "--outer-steps", "100001", "--devices", "1")
    assert _send_when(again, lambda: "iterations " in again.out.read_text(), signal.SIGINT) == 130
    assert "iterations 1 to" not in again.out.read_text()


COMPILING = {
    "compare": (
        ["--task", "fashion-mlp", "--optimizers", "celo2,soap", "--out", "out"],
        "out",
        "compiling",
    ),
    "evaluate": (
        ["--tasks", "fashion-mlp", "--optimizers", "celo2,soap", "--out", "out"],
        "out",
        "compiling",
    ),
    "bench": (
        ["--tree", "gpt2-15m", "--optimizers", "celo2", "--json", "b.json"],
        "err",
        "compiling celo2\n",
    ),
}


@pytest.mark.parametrize(
    ("name", "number"), [*((name, signal.SIGINT) for name in COMPILING), ("compare", signal.SIGHUP)]
)
def test_a_command_that_compiles_ends_soon_and_does_not_crash(
    start: Start, tmp_path: Path, name: str, number: int
) -> None:
    words, stream, sign = COMPILING[name]
    run = start(sys.executable, "-m", "celo2", name, *words)
    place = run.out if stream == "out" else run.err
    assert _send_when(run, lambda: sign in place.read_text(), number) == STATUSES[signal.Signals(number)]
    _assert_no_crash(run)
    assert "interrupted" in run.err.read_text().splitlines()[-1]
    if name == "bench":
        rows = json.loads((tmp_path / "b.json").read_text())["rows"]
        assert [row["optimizer"] for row in rows][:1] == ["adamw"]
