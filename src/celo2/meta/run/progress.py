"""Displays the progress of a meta-training run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

SMOOTHING = 0.98  # of the displayed "smoothed meta-loss"
PLAIN_EVERY = 30.0  # seconds between lines if the output is not a terminal


class Progress:
    """Progress bar with the smoothed meta-loss and the time left; plain lines without a terminal.

    Args:
        title: Text before the bar.
        first: Number of iterations already done.
        total: Total number of iterations.
        history: Records of the iterations already done, for counts over the whole run.
        shown: Whether anything is displayed.
    """

    def __init__(
        self,
        title: str,
        first: int,
        total: int,
        history: Iterable[Mapping[str, Any]] = (),
        *,
        shown: bool = True,
    ) -> None:
        self._console = Console()
        self._plain = shown and not self._console.is_terminal
        self._first, self._total = first, total
        self._last_line = time.monotonic()
        self._compiled: tuple[float, int] | None = (
            None  # time and step at the end of the first call, which compiles
        )
        self._weighted = self._weight = 0.0
        self._skipped = self._ended = self._diverged = 0
        for record in history:
            self._count(record)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=self._plain or not shown,
        )
        self._task = self._bar.add_task(title, total=total, completed=first, loss="compiling", left="")

    def __enter__(self) -> Progress:
        self._bar.start()
        if self._plain:
            print(f"iterations {self._first + 1} to {self._total}; compiling", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _count(self, record: Mapping[str, Any]) -> None:
        self._skipped += record.get("skipped", 0)  # absent in old runs
        self._ended += record.get("ended_runs", 0)
        self._diverged += record.get("diverged_runs", 0)
        loss = record.get("meta_loss")
        if not record.get("skipped") and loss is not None:
            self._weighted = SMOOTHING * self._weighted + (1 - SMOOTHING) * loss
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)

    def _faults(self) -> str:
        skipped = f", {self._skipped} skipped" if self._skipped else ""
        return skipped + (f", {self._diverged} of {self._ended} runs diverged" if self._diverged else "")

    def update(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds one or more iterations' records; see `OuterMetrics` for their fields."""
        for record in records:
            self._count(record)
        last = records[-1]
        smoothed = self._weighted / self._weight if self._weight else float("nan")
        shown = f"smoothed meta-loss {smoothed:.4f}{self._faults()}"
        now = time.monotonic()
        pace, left = self._pace(last["step"], now)
        self._bar.update(self._task, completed=last["step"], loss=shown, left=left)
        if self._plain and (now - self._last_line > PLAIN_EVERY or last["step"] == self._total):
            self._last_line = now
            words = (
                f"iteration {last['step']}/{self._total}",
                shown,
                f"diverged {100 * last['diverged']:.1f} %",
                pace,
                left,
            )
            print("  ".join(filter(None, words)), flush=True)

    def _pace(self, step: int, now: float) -> tuple[str, str]:
        """Formats the time per iteration and the time left; "" until one has run without compilation."""
        if self._compiled is None:
            self._compiled = (now, step)
        since, before = self._compiled
        if step == before:
            return "", ""
        each = (now - since) / (step - before)
        seconds = each * (self._total - step)
        left = f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.1f} min left"
        return f"{each:.3f} s each", left
