"""Results of training one optimizer over a grid of learning rates × seeds, with derived statistics."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import numpy as np

from celo2.training.protocol import DIVERGENCE_MARGIN, window_length


@dataclasses.dataclass(frozen=True, eq=False)
class RunGrid:
    """The curves of one optimizer on one task: L learning rates, S seeds, V validations.

    Attributes:
        learning_rates: Peak learning rates, `(L,)`.
        seeds: Seeds, `(S,)`.
        train_loss: Loss of each training batch before its step, `(L, S, steps)`.
        valid_steps: Number of steps before each validation, `(V,)`; the last is the run's length.
        valid_loss: Mean loss over the validation examples, `(L, S, V)`.
        valid_accuracy: Fraction of correct answers in [0, 1], `(L, S, V)`; None where the task has none.
        initial_loss: Approximate loss of an untrained network.
        seconds_per_step: Wall-clock time of a step of one run, excluding validations: a step of the runs
            trained side by side, divided by their number; the median over the pieces between validations. NaN
            if it was not measured.
    """

    learning_rates: np.ndarray
    seeds: np.ndarray
    train_loss: np.ndarray
    valid_steps: np.ndarray
    valid_loss: np.ndarray
    valid_accuracy: np.ndarray | None
    initial_loss: float
    seconds_per_step: float = math.nan

    @property
    def steps(self) -> int:
        """The length of every run."""
        return self.train_loss.shape[-1]

    @cached_property
    def window_means(self) -> np.ndarray:
        """The mean batch loss over each 5 % of consecutive steps, `(L, S, W)`; the last ends with the run."""
        length = window_length(self.steps)
        windows = np.lib.stride_tricks.sliding_window_view(self.train_loss, length, axis=-1)
        with np.errstate(invalid="ignore"):  # a diverged run may have +inf and -inf in one window
            return windows.mean(-1, dtype=np.float64)

    @property
    def final_train_loss(self) -> np.ndarray:
        """The mean batch loss over the last 5 % of the steps, `(L, S)`."""
        return self.window_means[..., -1]

    @property
    def final_valid_loss(self) -> np.ndarray:
        """The validation loss after the last step, `(L, S)`."""
        return self.valid_loss[..., -1]

    @cached_property
    def diverged_at(self) -> np.ndarray:
        """The step at which a run's loss ceased to be finite, `(L, S)`.

        For a run that stayed finite but ended above an untrained network's loss (by 5 %), this is the run's
        length; for a run that did not diverge, -1.
        """
        finite = np.isfinite(self.train_loss)
        blew_up = np.where(finite.all(-1), -1, finite.argmin(-1))
        limit = self.initial_loss + (DIVERGENCE_MARGIN - 1) * abs(self.initial_loss)  # which may be negative
        worse = ~(self.final_train_loss <= limit)
        worse |= ~np.isfinite(self.final_valid_loss)
        return np.where((blew_up < 0) & worse, self.steps, blew_up)

    @property
    def diverged(self) -> np.ndarray:
        """Whether each run diverged, `(L, S)` bool."""
        return self.diverged_at >= 0

    def curve(self, num_points: int = 100) -> tuple[np.ndarray, np.ndarray]:
        """Returns the training loss at `num_points` points (or fewer, if there are fewer windows).

        Returns:
            The steps taken, `(P,)`, and the mean batch loss over the preceding 5 % of the steps,
            `(L, S, P)`; NaN from the point at which a run ceased to be finite.
        """
        count = self.window_means.shape[-1]
        chosen = np.linspace(0, count - 1, min(num_points, count)).round().astype(int)
        losses = self.window_means[..., chosen]
        lost = np.logical_or.accumulate(~np.isfinite(losses), axis=-1)
        return chosen + window_length(self.steps), np.where(lost, np.nan, losses)
