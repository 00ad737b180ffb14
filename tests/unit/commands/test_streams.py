"""What commands print: to readers that go away, of libraries, and of the time that is left."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from celo2._utils.streams import library_log
from celo2.evaluate import progress as evaluate_progress
from celo2.evaluate.progress import ProgressDisplay
from celo2.evaluate.suite.local import GroupProgress
from celo2.evaluate.suite.run import SuiteProgress
from celo2.evaluate.suite.spec import Group
from celo2.meta.run import progress as meta_progress
from celo2.training.runner import Progress as GridProgress

WORK = """
import sys, time
sys.argv = ["celo2", "work"]
from celo2 import cli

def work(words):
    for index in range(10_000):
        print(f"line {index}")
    print("at work", file=sys.stderr)
    return 0

cli._choose = work
sys.exit(cli.main())
"""


def test_a_reader_that_goes_away_changes_nothing() -> None:
    words = [sys.executable, "-c", WORK]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr
    with process.stderr as errors:
        assert errors.read() == "at work\n"
    assert process.wait(timeout=60) == 0


def test_a_reader_that_stays_reads_everything() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"line {index}" for index in range(10_000)]


def test_libraries_log_into_the_file_and_afterwards_as_before(tmp_path: Path, capfd) -> None:
    logger = logging.getLogger("absl")
    before = (logger.handlers[:], logger.propagate)
    path = tmp_path / "libraries.log"
    with library_log(path):
        assert not path.exists()
        logger.error("a page of %s", "tracebacks")
        logging.getLogger("orbax.checkpoint").warning("and more")
    text = path.read_text()
    assert "absl ERROR: a page of tracebacks" in text
    assert "orbax.checkpoint WARNING: and more" in text
    assert capfd.readouterr().err == ""
    assert (logger.handlers, logger.propagate) == before


@pytest.mark.parametrize(("folder", "is_logged"), [("orbax", True), ("mine", False)])
def test_only_failed_callbacks_of_libraries_go_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, is_logged: bool
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: shown.append(str(failure.exc_value)))
    code = compile("raise RuntimeError('loop is closed')", f"/site-packages/{folder}/writer.py", "exec")
    with library_log(tmp_path / "libraries.log"):
        thread = threading.Thread(target=exec, args=(code, {}))
        thread.start()
        thread.join()
    assert shown == ([] if is_logged else ["loop is closed"])
    assert (tmp_path / "libraries.log").exists() == is_logged
    if is_logged:
        assert "RuntimeError: loop is closed" in (tmp_path / "libraries.log").read_text()


def test_failures_in_the_main_thread_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[type] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: shown.append(kind))
    with library_log(tmp_path / "libraries.log"):
        sys.excepthook(ValueError, ValueError("mine"), None)
    assert shown == [ValueError]


def test_a_log_that_cannot_be_written_is_silent(tmp_path: Path, capfd) -> None:
    with library_log(tmp_path / "nowhere" / "libraries.log"):
        logging.getLogger("absl").error("a page of tracebacks")
    assert capfd.readouterr().err == ""


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (meta_progress, evaluate_progress):
        monkeypatch.setattr(module, "time", clock)
    return clock


def _record(step: int) -> dict:
    return {"step": step, "meta_loss": 1.0 + step, "skipped": 0, "diverged": 0.0}


def test_meta_training_tells_its_time_without_compilation(clock: Clock, capsys) -> None:
    progress = meta_progress.Progress("celo2", 0, 400)
    with progress:
        clock.now += 1000.0  # compiles
        progress.update([_record(1)])
        first = capsys.readouterr().out.splitlines()
        clock.now += 40.0
        progress.update([_record(step) for step in range(2, 102)])
    assert first[0] == "iterations 1 to 400; compiling"
    assert "left" not in "".join(first)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("iteration 101/400  smoothed meta-loss ")
    assert line.endswith("0.400 s each  2.0 min left")
    assert len(re.findall("meta-loss", line)) == 1


def _group(task: str) -> Group:
    return Group(task, "adamw", (1e-3,), 0.0, (0,), 100, "cosine")


def _shown(display: ProgressDisplay, clock: Clock, calls: Sequence[tuple[float, object]]) -> list[str]:
    for seconds, progress in calls:
        clock.now += seconds
        display(progress)  # type: ignore[arg-type]
    return display._console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def display() -> ProgressDisplay:
    return ProgressDisplay(Console(file=io.StringIO(), width=200))


def test_a_comparison_tells_its_time_without_compilation(clock: Clock, display) -> None:
    def at(step: int) -> SuiteProgress:
        grid = GridProgress(step / 100, step, 100, 0.5)
        return SuiteProgress(0, 1, GroupProgress(_group("a"), grid if step else None))

    lines = _shown(display, clock, [(0.0, at(0)), (500.0, at(10)), (10.0, at(20)), (10.0, at(30))])
    assert lines[0].startswith("  0 %  a: compiling")
    assert "left" not in lines[1]
    assert lines[-1].endswith("about 70 s left, compilation not counted")


def test_a_resumed_suite_tells_its_time_by_what_it_trains(clock: Clock, display) -> None:
    """Half of it was there; a task compiles before it trains, the next one too."""

    def trained(task: str, done: int, share: float) -> SuiteProgress:
        grid = GridProgress(share, int(100 * share), 100, 0.5)
        return SuiteProgress(done, 10, GroupProgress(_group(task), grid))

    def compiling(task: str, done: int) -> SuiteProgress:
        return SuiteProgress(done, 10, GroupProgress(_group(task), None))

    calls = [
        (0.0, SuiteProgress(5, 10, None)),
        (1.0, compiling("a", 5)),
        (900.0, trained("a", 5, 0.01)),
        (19.8, trained("a", 5, 1.0)),
        (0.0, SuiteProgress(6, 10, None)),
        (900.0, compiling("b", 6)),
        (900.0, trained("b", 6, 0.01)),
    ]
    lines = _shown(display, clock, calls)
    assert "a: compiling" in lines[1]
    assert not any("left" in line for line in lines[:3])
    assert lines[-1].endswith("about 80 s left, compilation not counted")
