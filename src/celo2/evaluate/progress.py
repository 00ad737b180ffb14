"""Shows a comparison at work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from celo2.evaluate.compare import CompareProgress

__all__ = ["ProgressDisplay"]

PLAIN_INTERVAL = 5.0  # seconds, at least, between two plain lines about one optimizer


class ProgressDisplay:
    """A context that `compare` reports to, by calling it.

    Args:
        console: Where to show; its `is_terminal` decides on the bar.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic()
        self._last_line = (-math.inf, "")
        self._bar = Progress(
            TextColumn("{task.description}"),
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

    def __call__(self, progress: CompareProgress) -> None:
        """Shows where the comparison stands."""
        text = _describe(progress)
        left = self._time_left(progress.done)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=progress.done, description=text, left=left)
        elif self._line_is_due(progress):
            self._console.print(f"{100 * progress.done:3.0f} %  {text}  {left}".rstrip(), highlight=False)

    def _line_is_due(self, progress: CompareProgress) -> bool:
        """At the start and the end of each optimizer, and not too often in between."""
        now, (last, name) = time.monotonic(), self._last_line
        due = name != progress.optimizer or progress.grid.done == 1.0 or now - last >= PLAIN_INTERVAL
        if due:
            self._last_line = (now, progress.optimizer)
        return due

    def _time_left(self, done: float) -> str:
        if not 0.1 < done < 1.0:
            return ""
        seconds = (time.monotonic() - self._begin) * (1.0 - done) / done
        return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"


def _describe(progress: CompareProgress) -> str:
    grid = progress.grid
    if grid.step == 0:
        return f"compiling {progress.optimizer}, then timing a step of each"
    loss = "no finite loss" if math.isnan(grid.loss) else f"best loss {grid.loss:.4f}"
    return f"{progress.optimizer}: step {grid.step}/{grid.steps}, {loss}"
