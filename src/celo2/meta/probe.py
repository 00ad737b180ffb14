"""Probes: how well theta trains networks that meta-training does not train.

The meta-loss is measured on tiny classifiers at the recipe's own inner rates; a rule is used on other
networks, at a rate that somebody has tuned. A probe does that: it trains each of a few tasks under the
protocol of a comparison (cosine after a warm-up, float32) at every rate and seed side by side, and takes
the final training loss at the best rate. The score of weights is

    score(θ) = mean over the tasks of log(loss(θ) / loss(θ₀))

with the starting weights θ₀, so that tasks count alike whatever the size of their losses, 0 is the start,
and exp(score) is the factor by which the losses changed: -0.05 is 5 % below. Lower is better.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import optax

from celo2.baselines import LEARNED
from celo2.config import nearest_name
from celo2.evaluate.grid import RunGrid
from celo2.evaluate.runner import GridRunner
from celo2.evaluate.task_program import SharedTask
from celo2.tasks.registry import TASKS, make_task

__all__ = ["FIRST_SEED", "Probe", "ProbeConfig", "TaskRecord", "compute_score", "describe", "summarize_grid"]

FIRST_SEED = 1000  # those of a comparison are 0, 1, …: what was chosen is judged on other ones
LOSS_FLOOR = 1e-6  # a loss below it counts as this much: the score is a logarithm

TaskRecord = dict[str, Any]  # what `summarize_grid` returns


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What a probe trains.

    Attributes:
        tasks: Held-out tasks by name (`celo2.tasks.registry.TASKS`), best of other kinds than the recipe's.
        rates: Peak learning rates, of which each task takes the best.
        seeds: Runs of each rate.
        steps: Length of a run.

    Raises:
        ValueError: A value is out of its range, or a name is unknown or appears twice.
    """

    tasks: tuple[str, ...] = ("fashion-mlp", "fashion-conv", "tiny-lm")
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: int = 1
    steps: int = 100

    def __post_init__(self) -> None:
        """Checks names and ranges, and sorts the rates."""
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(
                    f"unknown probe task {name!r}{nearest_name(name, TASKS)} There are {', '.join(TASKS)}."
                )
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"probe tasks must be one or more different names, got {list(self.tasks)}.")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"probe rates must be one or more positive numbers, got {list(self.rates)}.")
        if len(set(self.rates)) != len(self.rates):
            raise ValueError(f"probe rates must differ from each other, got {list(self.rates)}.")
        if self.seeds < 1 or self.steps < 2:
            raise ValueError(f"a probe needs at least 1 seed and 2 steps, got {self.seeds} and {self.steps}.")
        object.__setattr__(self, "rates", tuple(sorted(self.rates)))

    @property
    def seed_range(self) -> range:
        """The seeds."""
        return range(FIRST_SEED, FIRST_SEED + self.seeds)

    def to_json(self) -> str:
        """The settings as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


class Probe:
    """The tasks, compiled when first measured and never again: theta is an argument of the programs.

    Args:
        config: What to train.
        make_optimizer: `(schedule, theta) → Optax transform`.
        schedule: Of the learning rate, by its name in `celo2.evaluate.protocol.SCHEDULES`.

    Attributes:
        config: What is trained.
    """

    def __init__(
        self,
        config: ProbeConfig,
        make_optimizer: Callable[..., optax.GradientTransformation],
        schedule: str = "cosine",
    ) -> None:
        self.config = config
        self._schedule = schedule
        self._make_optimizer = make_optimizer
        self._runners: dict[str, GridRunner] = {}

    @classmethod
    def of_variant(cls, config: ProbeConfig, variant: str) -> Probe:
        """Probes the public optimizer of a variant, "celo2" or "celo2-base", without weight decay."""
        transform = LEARNED[variant]
        return cls(config, lambda schedule, theta: transform(schedule, weights=theta))

    def measure(self, theta: Mapping[str, np.ndarray]) -> dict[str, TaskRecord]:
        """Trains every task with these weights; the same weights give the same records but for `seconds`."""
        inputs = ({name: np.asarray(array) for name, array in theta.items()},)
        if not self._runners:
            with ThreadPoolExecutor() as pool:  # all programs at once, which keeps every core busy
                runners = pool.map(lambda name: self._compile(name, inputs), self.config.tasks)
                self._runners = dict(zip(self.config.tasks, runners, strict=True))
        found = {}
        for name, runner in self._runners.items():
            begin = time.monotonic()
            grid = runner.train(inputs=inputs)
            found[name] = {**summarize_grid(grid), "seconds": round(time.monotonic() - begin, 3)}
        return found

    def _compile(self, name: str, inputs: tuple[Any, ...]) -> GridRunner:
        config = self.config
        return GridRunner(
            SharedTask(make_task(name)),
            self._make_optimizer,
            config.rates,
            seeds=config.seed_range,
            steps=config.steps,
            inputs=inputs,
            num_evals=1,
            schedule=self._schedule,
        )


def summarize_grid(grid: RunGrid) -> TaskRecord:
    """A task's record: the best rate has the lowest final training loss, mean over the seeds, none diverged.

    Returns:
        `loss` at the best rate, mean over the seeds, and `spread`, its standard deviation (null for one
        seed); `rate`, and `at_edge`, whether it is the lowest or highest tried; `rates` and `losses`, null
        where a seed diverged; `untrained`, about what an untrained network scores. `loss` and `rate` are
        null where every rate has a run that diverged.
    """
    best = grid.best
    losses = [float(score) if np.isfinite(score) else None for score in grid.scores]
    several = best is not None and len(grid.seeds) > 1
    return {
        "loss": None if best is None else losses[best],
        "spread": float(grid.final_train_loss[best].std(ddof=1)) if several else None,
        "rate": None if best is None else float(grid.learning_rates[best]),
        "at_edge": grid.best_at_edge and len(losses) > 1,
        "rates": [float(rate) for rate in grid.learning_rates],
        "losses": losses,
        "untrained": float(grid.initial_loss),
    }


def compute_score(tasks: Mapping[str, TaskRecord], reference: Mapping[str, TaskRecord]) -> float | None:
    """Mean over the tasks of the logarithm of the loss over the reference's; lower is better.

    Args:
        tasks: Records by task.
        reference: Those of the starting weights, the same tasks. Where they diverged at every rate, an
            untrained network's loss stands in.

    Returns:
        None where a task diverged at every rate: such weights cannot be the best.
    """
    logs = []
    for name, record in tasks.items():
        if record["loss"] is None:
            return None
        start = reference[name]["loss"]
        start = reference[name]["untrained"] if start is None else start
        logs.append(math.log(max(record["loss"], LOSS_FLOOR) / max(start, LOSS_FLOOR)))
    return sum(logs) / len(logs)


def describe(tasks: Mapping[str, TaskRecord]) -> str:
    """A task's loss and best rate, one after the other, on one line."""
    return ", ".join(f"{name} {describe_task(record)}" for name, record in tasks.items())


def describe_task(record: TaskRecord) -> str:
    """Loss and rate; a rate at the edge of those tried is pointed out."""
    if record["loss"] is None:
        return "diverged at every rate"
    spread = "" if record["spread"] is None else f" ±{record['spread']:.4f}"
    rates = record["rates"]
    edge = f" ({'highest' if record['rate'] == max(rates) else 'lowest'} tried)" if record["at_edge"] else ""
    return f"{record['loss']:.4f}{spread} at {record['rate']:g}{edge}"
