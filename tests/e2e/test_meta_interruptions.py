"""Meta-training that is killed, finds the disk full or its files cut: it ends like a run that was not.

The inner runs are a stand-in (`quick_meta_train.py`); loop, files and command are the real ones.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from celo2 import load_checkpoint

STEPS, EVERY = 60, 10
RECIPE = ["--datasets", "digits", "--tasks-per-set", "4", "--outer-learning-rate", "0.01"]
UNROLL = ["--truncation-length", "2", "--min-unroll", "2", "--max-unroll", "5"]
SCRIPT = str(Path(__file__).with_name("quick_meta_train.py"))
MAX_WAIT = 300.0  # seconds; far more than any of these runs takes


class Run(NamedTuple):
    """A process, and the file with what it prints."""

    process: subprocess.Popen
    log: Path


Start = Callable[..., Run]


@pytest.fixture(scope="module")
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Plainer random bits, which compile faster."""
    return environment | {"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg"}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """A function: folder, further words and variables → a run, on two devices unless told otherwise."""
    with _starting(environment, tmp_path) as run:
        yield run


@contextmanager
def _starting(environment: dict[str, str], logs: Path) -> Iterator[Start]:
    started: list[Run] = []

    def run(out: Path, *words: str, **variables: str) -> Run:
        length = ["--outer-steps", str(STEPS), "--checkpoint-every", str(EVERY)]
        command = [
            sys.executable,
            SCRIPT,
            *RECIPE,
            *UNROLL,
            *length,
            "--out",
            str(out),
            "--devices",
            "2",
            *words,
        ]
        log = logs / f"{len(started)}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, env={**environment, **variables}, stdout=stream, stderr=subprocess.STDOUT
            )
        started.append(Run(process, log))
        return started[-1]

    yield run
    for process, _ in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with _starting(environment, folder) as run:
        _finish(run(folder / "run"))
    return folder / "run"


def _finish(run: Run, status: int = 0) -> str:
    """What a process that ends by itself has printed."""
    run.process.wait(timeout=MAX_WAIT)
    assert run.process.returncode == status, run.log.read_text()
    return run.log.read_text()


def _kill_when(run: Run, condition: Callable[[], object], delay: float = 0.0) -> None:
    deadline = time.monotonic() + MAX_WAIT
    while not condition():
        assert run.process.poll() is None, f"it was over before it could be killed: {run.log.read_text()}"
        assert time.monotonic() < deadline, f"waited {MAX_WAIT} s: {run.log.read_text()}"
        time.sleep(0.002)
    time.sleep(delay)
    run.process.kill()
    run.process.wait()
    assert run.process.returncode == -signal.SIGKILL, "it was over before it could be killed"


def _is_iterating(run: Run, out: Path) -> bool:
    """Whether the metrics have a line that this process has written."""
    first = re.search(r"iterations (\d+) to", run.log.read_text())
    return first is not None and (out / "metrics.jsonl").read_text().count("\n") >= int(first[1])


def _records(out: Path) -> list[dict]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def _assert_same_run(out: Path, whole: Path) -> None:
    """Weights of every checkpoint and the metrics of every iteration, bit by bit."""
    assert _records(out) == _records(whole)
    names = sorted(path.name for path in (whole / "weights").iterdir())
    assert sorted(path.name for path in (out / "weights").iterdir()) == names
    for name in names:
        assert (out / "weights" / name).read_bytes() == (whole / "weights" / name).read_bytes(), name


def test_killed_at_any_moment_the_run_ends_the_same(whole_run: Path, tmp_path: Path, start: Start) -> None:
    """Three times in one run: while it writes a checkpoint, and twice at moments drawn by a seed."""
    out, draw = tmp_path / "run", random.Random(0)
    _kill_when(start(out), lambda: any((out / "checkpoints").glob(f"{2 * EVERY}.*tmp*")))
    for _ in range(2):
        run = start(out, "--resume")
        _kill_when(run, lambda run=run: _is_iterating(run, out), delay=draw.uniform(0.0, 0.3))
    _finish(start(out, "--resume"))
    _assert_same_run(out, whole_run)


def _cut_every_file(step_folder: Path) -> None:
    for file in step_folder.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def test_cut_files_fall_back_to_the_older_checkpoint(whole_run: Path, tmp_path: Path, start: Start) -> None:
    """The last checkpoint, the line of the metrics that came next, and the weights that a kill left out."""
    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    _cut_every_file(out / "checkpoints" / str(STEPS))
    (out / "weights" / f"celo2-{STEPS - EVERY:06d}.safetensors").unlink()
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[: STEPS - 3]) + lines[STEPS - 3][:40])
    printed = _finish(start(out, "--resume"))
    assert f"checkpoint {STEPS} is not readable" in printed
    assert f"iterations {STEPS - EVERY + 1} to {STEPS}" in printed
    _assert_same_run(out, whole_run)


@pytest.mark.parametrize(
    ("room", "file"),
    [(13_000, f"checkpoints/{STEPS - EVERY}"), (10_600, "metrics.jsonl")],
    ids=["checkpoint", "metrics"],
)
def test_a_full_disk_ends_the_run_and_leaves_it_resumable(
    whole_run: Path, tmp_path: Path, start: Start, room: int, file: str
) -> None:
    """No file may grow beyond `room` bytes: some 41 lines of metrics, or 51 but not a whole checkpoint."""
    out = _stopped_at(STEPS - 2 * EVERY, whole_run, tmp_path / "run")
    printed = _finish(start(out, "--resume", QUICK_FILE_BYTES=str(room)), status=1)
    assert f"{out / file} cannot be written" in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) <= 3
    assert "continue with --resume" in printed
    printed = _finish(start(out, "--resume"))
    assert f"iterations {STEPS - 2 * EVERY + 1} to {STEPS}" in printed
    _assert_same_run(out, whole_run)


def _stopped_at(step: int, whole: Path, out: Path) -> Path:
    """The run as it was after the checkpoint of a step, but for lines of metrics that came later."""
    shutil.copytree(whole, out)
    for later in range(step + EVERY, STEPS + 1, EVERY):
        shutil.rmtree(out / "checkpoints" / str(later))
        (out / "weights" / f"celo2-{later:06d}.safetensors").unlink()
    return out


def test_two_resumptions_cannot_both_run(whole_run: Path, tmp_path: Path, start: Start) -> None:
    out = _stopped_at(STEPS - 2 * EVERY, whole_run, tmp_path / "run")
    first = start(out, "--resume")
    deadline = time.monotonic() + MAX_WAIT
    while not (out / ".lock.json").exists():
        assert first.process.poll() is None, first.log.read_text()
        assert time.monotonic() < deadline, first.log.read_text()
        time.sleep(0.002)
    os.kill(first.process.pid, signal.SIGSTOP)  # so that it is not over before the other has asked
    try:
        printed = _finish(start(out, "--resume"), status=2)
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    assert (
        f"{out} is in use by celo2 meta-train, process {first.process.pid} on {socket.gethostname()}"
        in printed
    )
    _finish(first)
    _assert_same_run(out, whole_run)


def test_one_lost_process_ends_the_other_and_both_resume(
    whole_run: Path, tmp_path: Path, start: Start
) -> None:
    """First the process that coordinates and writes is killed, then the other one."""
    out = _stopped_at(STEPS - 2 * EVERY, whole_run, tmp_path / "run")
    for victim in (0, 1):
        both = _start_two(start, out)
        _kill_when(both[victim], lambda both=both: _is_iterating(both[0], out))
        status, printed = both[1 - victim].process.wait(timeout=MAX_WAIT), both[1 - victim].log.read_text()
        assert status != 0, printed
        assert "has lost another one" in printed or "another task died" in printed
    printed = [_finish(run) for run in _start_two(start, out)]
    assert "weights:" in printed[0]
    assert "iteration" not in printed[1]
    assert [record["step"] for record in _records(out)] == list(range(1, STEPS + 1))
    found, expected = (
        load_checkpoint(folder / "weights" / f"celo2-{STEPS:06d}.safetensors").arrays
        for folder in (out, whole_run)
    )
    for name, array in expected.items():  # sums over the pairs may be taken in another order
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=name)


def _start_two(start: Start, out: Path) -> list[Run]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--resume", "--devices", "1", "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
    return [start(out, *words, "--process-id", str(index)) for index in range(2)]
