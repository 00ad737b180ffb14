"""How many outer iterations the device takes at once: enough to keep it busy, few enough to be answered."""

from __future__ import annotations

import time

from celo2.meta.outer import MAX_STEPS

__all__ = ["Pace"]

CALL_SECONDS = 1.0  # between looks at Ctrl-C, lines of metrics, and moves of the progress bar


class Pace:
    """The clock of a run, which sizes its calls of the device.

    Attributes:
        num_steps: Iterations of the next call, in [1, MAX_STEPS]; one until it is known how long one takes.
    """

    def __init__(self) -> None:
        self.num_steps = 1
        self._started = self._last = time.monotonic()
        self._calls = 0

    def end(self, num_steps: int) -> list[float]:
        """Takes the end of a call of so many iterations; returns the seconds at which each of them ended."""
        before, self._last = self._last, time.monotonic()
        each = (self._last - before) / num_steps
        self._calls += 1
        if self._calls > 1:  # the first one compiles
            self.num_steps = min(max(round(CALL_SECONDS / max(each, 1e-9)), 1), MAX_STEPS)
        return [before - self._started + each * (index + 1) for index in range(num_steps)]

    def skip(self) -> None:
        """Leaves what has happened since the last call out of the seconds of an iteration."""
        self._last = time.monotonic()
