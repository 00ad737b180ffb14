"""Displays the progress of a suite: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from celo2.evaluate.suite.run import SuiteProgress
from celo2.report.kit import shorten
from celo2.training.runner import Progress as GridProgress

LEAST_SHARE = 0.05  # minimum share of the work trained in this call before the time left is shown
PLAIN_INTERVAL = 5.0  # minimum seconds between two plain lines about one optimizer


class _Status(NamedTuple):
    """Displayed status: share of work done, current work as text, and whether it is finished or training."""

    done: float
    label: str
    text: str
    finished: bool
    trains: bool


class ProgressDisplay:
    """Progress callback for `run_suite`, and a context manager around the calls.

    Args:
        console: The console to print to; its `is_terminal` enables the bar.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_call: tuple[float, float, bool] | None = None  # time, share done, whether it trained
        self._trained = (0.0, 0.0)  # seconds of training, share of the work done in them
        self._last_line = (-math.inf, "")
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("loading the task", total=1.0, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: SuiteProgress) -> None:
        """Updates the display."""
        status = _describe_suite(progress)
        left = self._time_left(status.done, status.trains)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=status.done, description=status.text, left=left)
        elif self._line_is_due(status):
            line = f"{100 * status.done:3.0f} %  {status.text}  {left}"
            self._console.print(line.rstrip(), highlight=False, markup=False)

    def _line_is_due(self, status: _Status) -> bool:
        """Returns whether to print a line: at the start and end of each item, and occasionally in between."""
        now, (last, label) = time.monotonic(), self._last_line
        due = label != status.label or status.finished or now - last >= PLAIN_INTERVAL
        if due:
            self._last_line = (now, status.label)
        return due

    def _time_left(self, done: float, trains: bool) -> str:
        """Formats the time left, estimated from training since the first call, excluding compilation.

        Work done before the first call does not count, since a resumed suite begins in the middle.
        """
        now = time.monotonic()
        if self._last_call is not None and self._last_call[2]:
            since, before, _ = self._last_call
            seconds, share = self._trained
            self._trained = (seconds + now - since, share + max(done - before, 0.0))
        self._last_call = (now, done, trains)
        seconds, share = self._trained
        if share < LEAST_SHARE or done >= 1.0:
            return ""
        left = seconds * (1.0 - done) / share
        shown = f"about {left:.0f} s" if left < 90 else f"about {left / 60:.0f} min"
        return f"{shown} left, compilation not counted"


def _describe_suite(progress: SuiteProgress) -> _Status:
    done = progress.done / progress.total
    if progress.current is None:
        text = f"{progress.done} of {progress.total} runs"
        return _Status(done, "", text, finished=False, trains=False)
    group, grid = progress.current
    if grid is None:
        return _Status(done, group.task, f"{group.task}: compiling", finished=False, trains=False)
    done += grid.done * len(group.specs()) / progress.total
    label = f"{group.task}, {shorten(group.optimizer)}"
    done = min(done, 1.0)  # a group may repeat existing runs
    return _Status(done, label, f"{label}: {_describe(grid)}", grid.done == 1.0, trains=True)


def _describe(grid: GridProgress) -> str:
    loss = "no finite loss" if math.isnan(grid.loss) else f"best loss {grid.loss:.4f}"
    return f"step {grid.step}/{grid.steps}, {loss}"
