"""A stand-in for the training of a comparison that takes no time."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from celo2.training.grid import RunGrid
from celo2.training.runner import OnProgress, Progress
from celo2.training.task_step import SharedTask


class InstantRunner:
    """In place of `GridRunner`: every loss is a half; `asked` collects what runners were made for."""

    asked: ClassVar[list[tuple]] = []
    width, num_devices = 1, 1

    def __init__(
        self, task: SharedTask, _: Any, learning_rates: Any, *, seeds: Any, steps: int, **__: Any
    ) -> None:
        self.asked.append((learning_rates, tuple(seeds), steps))
        shape = (len(learning_rates), len(seeds), steps)
        self.grid = RunGrid(
            learning_rates=np.asarray(learning_rates),
            seeds=np.asarray(seeds),
            train_loss=np.full(shape, 0.5, np.float32),
            valid_steps=np.asarray([steps]),
            valid_loss=np.full((*shape[:2], 1), 0.5, np.float32),
            valid_accuracy=None,
            initial_loss=task.task.initial_loss,
        )

    def train(self, on_progress: OnProgress | None = None, **_: Any) -> RunGrid:
        if on_progress:
            steps = self.grid.steps
            on_progress(Progress(0.5, steps // 2, steps, 0.7))
            on_progress(Progress(1.0, steps, steps, 0.5))
        return self.grid
