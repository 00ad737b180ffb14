"""Runs of one optimizer on one task: the settings, the best setting, and its statistics.

The best setting (learning rate, weight decay) has the lowest final validation or training loss
(`Cell.rank_by`), averaged over the seeds. A setting with a diverged seed, or with fewer seeds than another,
cannot be the best. This module needs no JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from celo2.evaluate.analysis import stats
from celo2.evaluate.suite.results import RankBy, RunResult, RunSpec
from celo2.report.kit import MeanStd


class Setting(NamedTuple):
    """Tuned hyperparameters of an optimizer."""

    learning_rate: float
    weight_decay: float
    schedule: str

    @classmethod
    def of(cls, spec: RunSpec) -> Setting:
        """Returns the setting of a run."""
        return cls(spec.learning_rate, spec.weight_decay, spec.schedule)

    def __str__(self) -> str:
        """Formats the learning rate, and the weight decay unless it is 0."""
        return f"{self.learning_rate:g}" + (f", wd {self.weight_decay:g}" if self.weight_decay else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """Runs of one optimizer on one task.

    Attributes:
        optimizer: The name of the optimizer.
        settings: The runs by setting, both ascending (the runs by seed); at least one.
        rank_by: The loss that the best setting is chosen by.
    """

    optimizer: str
    settings: Mapping[Setting, tuple[RunResult, ...]]
    rank_by: RankBy

    @property
    def runs(self) -> list[RunResult]:
        """Every run."""
        return [run for runs in self.settings.values() for run in runs]

    @property
    def num_seeds(self) -> int:
        """The largest number of seeds of a setting."""
        return max(map(len, self.settings.values()))

    @cached_property
    def complete(self) -> list[Setting]:
        """The settings with as many seeds as any other."""
        return [setting for setting, runs in self.settings.items() if len(runs) == self.num_seeds]

    @cached_property
    def mean_losses(self) -> dict[Setting, float]:
        """The final loss of each setting, averaged over the seeds; +inf if a seed diverged."""
        return {setting: float(self._finals(runs).mean()) for setting, runs in self.settings.items()}

    @cached_property
    def best(self) -> Setting | None:
        """The best setting; None if every setting has a diverged run."""
        best = min(self.complete, key=self.mean_losses.__getitem__)
        return best if math.isfinite(self.mean_losses[best]) else None

    @property
    def shown(self) -> Setting:
        """The setting for figures: the best or, without a best one, the one whose runs got farthest."""
        return self.best or max(self.settings, key=lambda setting: min(map(_reached, self.settings[setting])))

    @property
    def best_runs(self) -> tuple[RunResult, ...]:
        """The runs at the best setting; empty without a best setting."""
        return () if self.best is None else self.settings[self.best]

    @property
    def losses(self) -> np.ndarray:
        """The final losses at the best setting, `(S,)`; all +inf without a best setting."""
        return self._finals(self.best_runs) if self.best_runs else np.full(self.num_seeds, np.inf)

    @property
    def mean_loss(self) -> float:
        """The mean of `losses`."""
        return float(self.losses.mean())

    @property
    def diverged(self) -> list[RunResult]:
        """Every diverged run."""
        return [run for run in self.runs if run.diverged]

    @property
    def rates(self) -> dict[float, float]:
        """The mean final loss by learning rate, ascending, at the weight decay and schedule of `shown`."""
        rest = self.shown[1:]
        return {
            setting.learning_rate: loss for setting, loss in self.mean_losses.items() if setting[1:] == rest
        }

    @property
    def edge(self) -> str:
        """The edge of the grid at which the best learning rate lies: "lowest", "highest", or ""."""
        rates = list(self.rates)
        if self.best is None or len(rates) < 2:
            return ""
        return {rates[0]: "lowest", rates[-1]: "highest"}.get(self.best.learning_rate, "")

    @property
    def decay_at_edge(self) -> bool:
        """Whether the best weight decay is the highest of several (0, the lowest, is a bound)."""
        decays = {setting.weight_decay for setting in self.settings}
        return self.best is not None and len(decays) > 1 and self.best.weight_decay == max(decays)

    @property
    def timing(self) -> str:
        """Describes how `seconds_per_step` was measured; times are comparable only if this is equal."""
        return min(map(_timing, self.runs))

    @property
    def seconds_per_step(self) -> float:
        """The median over the runs measured as `timing` describes."""
        chosen = self.timing
        return float(np.median([run.seconds_per_step for run in self.runs if _timing(run) == chosen]))

    def measure(self, of: Callable[[RunResult], float]) -> MeanStd | None:
        """Returns the mean and deviation of a quantity over the best setting's runs; None without one."""
        return MeanStd.over(np.array([of(run) for run in self.best_runs]))

    def mean_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps and the mean training loss over seeds at the best setting, `(P,)` each."""
        steps, losses = stack_curves([(run.train_steps, run.train_loss) for run in self.best_runs])
        return steps, losses.mean(axis=0)

    def _finals(self, runs: Sequence[RunResult]) -> np.ndarray:
        """Returns the final losses, `(S,)`; +inf where a run diverged."""
        finals = np.array([[run.final_loss(self.rank_by)] for run in runs])
        return stats.final_losses(finals, np.array([run.diverged for run in runs]))


def stack_curves(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Resamples curves to the steps of the curve with the fewest points: `(P,)` and `(curves, P)` float64.

    Packed runs have fewer points than others. Interpolation is linear.
    """
    steps = min((steps for steps, _ in curves), key=len)
    return steps, np.stack([np.interp(steps, xs, np.asarray(ys, np.float64)) for xs, ys in curves])


def _timing(run: RunResult) -> str:
    """Describes the machine and how the run's time was measured."""
    return ", ".join([run.timing, *(str(run.environment.get(name)) for name in ("processor", "devices"))])


def _reached(run: RunResult) -> int:
    """Returns the number of steps before the run diverged."""
    return run.diverged_at if run.diverged else run.spec.steps
