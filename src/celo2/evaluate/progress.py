"""Shows a comparison or a suite at work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from celo2.evaluate.compare import CompareProgress
from celo2.evaluate.labels import shorten
from celo2.evaluate.run_suite import SuiteProgress
from celo2.evaluate.runner import Progress as GridProgress

__all__ = ["ProgressDisplay"]

PLAIN_INTERVAL = 5.0  # seconds, at least, between two plain lines about one optimizer


class _Status(NamedTuple):
    """What is shown: share of the work done, what is at work, in words, and whether that is finished."""

    done: float
    label: str
    text: str
    finished: bool


class ProgressDisplay:
    """A context that `compare` or `run_suite` reports to, by calling it.

    Args:
        console: Where to show; its `is_terminal` decides on the bar.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin: tuple[float, float] | None = None  # when, and how much had been done before
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

    def __call__(self, progress: CompareProgress | SuiteProgress) -> None:
        """Shows where the work stands."""
        status = _of_compare(progress) if isinstance(progress, CompareProgress) else _of_suite(progress)
        left = self._time_left(status.done)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=status.done, description=status.text, left=left)
        elif self._line_is_due(status):
            line = f"{100 * status.done:3.0f} %  {status.text}  {left}"
            self._console.print(line.rstrip(), highlight=False, markup=False)

    def _line_is_due(self, status: _Status) -> bool:
        """At the start and the end of what is at work, and not too often in between."""
        now, (last, label) = time.monotonic(), self._last_line
        due = label != status.label or status.finished or now - last >= PLAIN_INTERVAL
        if due:
            self._last_line = (now, status.label)
        return due

    def _time_left(self, done: float) -> str:
        """By what has been done since the first call: a resumed suite begins in the middle."""
        if self._begin is None:
            self._begin = (time.monotonic(), done)
        since, before = self._begin
        share = (done - before) / (1.0 - before) if before < 1.0 else 1.0
        if not 0.1 < share < 1.0:
            return ""
        seconds = (time.monotonic() - since) * (1.0 - share) / share
        return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"


def _of_compare(progress: CompareProgress) -> _Status:
    grid = progress.grid
    if grid.step == 0:
        text = f"compiling {progress.optimizer}, then timing a step of each"
    else:
        text = f"{shorten(progress.optimizer)}: {_describe(grid)}"
    return _Status(progress.done, progress.optimizer, text, grid.done == 1.0)


def _of_suite(progress: SuiteProgress) -> _Status:
    done = progress.done / progress.total
    if progress.current is None:
        return _Status(done, "", f"{progress.done} of {progress.total} runs", finished=False)
    group, grid = progress.current
    if grid is None:
        return _Status(done, group.task, f"{group.task}: compiling", finished=False)
    done += grid.done * len(group.specs()) / progress.total
    label = f"{group.task}, {shorten(group.optimizer)}"
    done = min(done, 1.0)  # a group may repeat runs that there are
    return _Status(done, label, f"{label}: {_describe(grid)}", grid.done == 1.0)


def _describe(grid: GridProgress) -> str:
    loss = "no finite loss" if math.isnan(grid.loss) else f"best loss {grid.loss:.4f}"
    return f"step {grid.step}/{grid.steps}, {loss}"
