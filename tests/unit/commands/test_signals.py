"""Signals as exceptions, and what is kept of a measurement that one ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from celo2 import cli
from celo2._utils.signals import (
    Stopped,
    collecting_stops,
    exit_status,
    interruptible_pool,
    raising_on_stops,
)
from celo2.commands import bench as command
from celo2.training.timing import TimedStep

pytestmark = pytest.mark.usefixtures("signals_heard")

STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize(("number", "status"), STATUSES.items(), ids=lambda value: str(value))
def test_a_signal_becomes_an_exception_that_knows_it(number: int, status: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, raising_on_stops():
        signal.raise_signal(number)
    assert exit_status(stop.value) == status
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "handling", [raising_on_stops, lambda: collecting_stops("")], ids=["raise", "collect"]
)
@pytest.mark.parametrize(
    "work",
    [lambda: time.sleep(30), lambda: threading.Event().wait(30), lambda: None],
    ids=["sleep", "wait", "no work"],
)
def test_a_signal_within_a_finalizer_is_not_lost(handling, work, capfd: pytest.CaptureFixture) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # the second one raises, where the first is collected

    def finalize_and_work() -> None:
        with handling():
            Finalized()
            work()

    before, begun = sys.unraisablehook, time.monotonic()
    with pytest.raises(Stopped) as stop:
        finalize_and_work()
    assert time.monotonic() - begun < 15  # the work would take 30 s, and only then notice a mere flag
    assert exit_status(stop.value) == 143
    assert sys.unraisablehook is before
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_hook_that_was_installed_since_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error `library_log` keeps its own, since threads of libraries still fail then."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with raising_on_stops():
        sys.unraisablehook = later = print
    assert sys.unraisablehook is later


def test_other_discarded_exceptions_are_reported_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finalized:
        def __del__(self) -> None:
            raise ValueError("unrelated")

    reported: list[BaseException] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda discarded: reported.append(discarded.exc_value))
    with raising_on_stops():
        Finalized()
    assert [str(error) for error in reported] == ["unrelated"]


def test_a_plain_interrupt_is_ctrl_c() -> None:
    assert exit_status(KeyboardInterrupt()) == 130


def test_the_first_signal_is_collected_and_the_second_ends(capfd: pytest.CaptureFixture) -> None:
    with collecting_stops("once more") as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert capfd.readouterr().err == "\nonce more\n"
        with pytest.raises(Stopped) as stop:
            signal.raise_signal(signal.SIGINT)
    assert exit_status(stop.value) == 130


def test_what_the_process_was_told_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising_on_stops(), collecting_stops("") as received:
            signal.raise_signal(signal.SIGHUP)
            assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_may_meta_train() -> None:
    seen: list[list[int]] = []

    def work() -> None:
        with collecting_stops("") as received:
            seen.append(received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]


def test_an_interrupt_waits_for_no_thread() -> None:
    release = threading.Event()

    def work() -> None:
        with interruptible_pool() as pool:
            pool.submit(release.wait)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    release.set()


@pytest.mark.parametrize(("number", "status"), STATUSES.items(), ids=lambda value: str(value))
def test_every_command_ends_with_one_line_and_the_status(
    monkeypatch, capsys, number: int, status: int
) -> None:
    def stop(_: list[str]) -> int:
        raise Stopped(number)

    for name, spec in cli.COMMANDS.items():
        module = type(sys)(spec.module)
        module.main = stop  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, spec.module, module)
        assert cli.main([name]) == status
        assert capsys.readouterr().err == f"celo2 {name}: interrupted.\n"


WAIT = """
import sys, threading
from celo2._utils.signals import leave_if_stopped
threading.Thread(target=threading.Event().wait).start()
print("shown", end="")
leave_if_stopped(int(sys.argv[1]))
"""


@pytest.mark.parametrize("status", STATUSES.values())
def test_a_stopped_process_waits_for_no_thread(status: int) -> None:
    words = [sys.executable, "-c", WAIT, str(status)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, "shown", "")


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("finished", [1, 2], ids=["compiling", "timing"])
def test_bench_writes_what_was_measured(tmp_path, monkeypatch, capsys, finished: int) -> None:
    """Stopped while it compiles the second optimizer, or in the second round of timing."""
    calls: list[str] = []

    def stop_after(count: int, function):
        def run(*words):
            calls.append("")
            if len(calls) > count:
                raise Stopped(signal.SIGTERM)
            return function(*words)

        return run

    if finished == 1:
        monkeypatch.setattr(TimedStep, "__init__", stop_after(1, TimedStep.__init__))
    else:
        monkeypatch.setattr(TimedStep, "run", stop_after(7, TimedStep.run))
    path = tmp_path / "bench.json"
    words = ["--tree", "mlp", "--optimizers", "sgdm", "--seconds", "0.01", "--json", str(path)]
    assert command.main(words) == 143
    record = json.loads(path.read_text())
    assert record["finished"] is False
    assert [row["optimizer"] for row in record["rows"]] == ["adamw", "sgdm"][:finished]
    assert all((row["seconds"] is not None) == (finished == 2) for row in record["rows"])
    printed = capsys.readouterr()
    assert "interrupted; shown is what was measured." in printed.err
    assert "adamw" in printed.out
