"""Trains one task with several optimizers, each tuned over as many learning rates as the others.

Every optimizer gets the same seeds, initial parameters, batches and number of learning rates, and the same
schedule unless it is made for another; the rate with the lowest final training loss (mean over the seeds)
stands for it.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import optax

from celo2._utils.checks import (
    check_count,
    check_devices,
    check_memory,
    check_rates,
    check_seeds,
)
from celo2._utils.signals import interruptible_pool
from celo2.baselines import (
    OptimizerSpec,
    check_optimizer_name,
    find_optimizer,
    sets_own_rate,
)
from celo2.config import nearest_name
from celo2.constants import FLOAT32_MAX
from celo2.evaluate.environment import describe_environment, describe_task
from celo2.evaluate.suite.results import TaskFacts
from celo2.tasks.registry import check_task_name, make_task
from celo2.training.grid import RunGrid
from celo2.training.runner import GridRunner, OnProgress, Progress
from celo2.training.task_step import SharedTask
from celo2.training.timing import StepCost, StepTimer

ALL = "all"  # stands for every optimizer in `learning_rates`

FULL = {"num_learning_rates": 7, "seeds": 2, "steps": 500}
QUICK = {"num_learning_rates": 4, "seeds": 1, "steps": 100}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of a comparison.

    Attributes:
        task: Name of the task (`celo2.tasks.registry.TASKS`), with `@tiny` or `@small` where it has sizes.
        optimizers: Names (`celo2.baselines.OPTIMIZERS`), `celo2:PATH` for other weights of the rule,
            or `celo:PATH` and so on for its predecessors (`celo2.zoo`).
        learning_rates: Peak learning rates by optimizer, or for `"all"` of them; the others get
            their default grid.
        num_learning_rates: Values in each default grid; 0 means 7, or 4 when quick.
        seeds: Runs of each learning rate; 0 means 2, or 1 when quick.
        steps: Length of a run; 0 means 500, or 100 when quick.
        first_seed: The seeds are this one and the ones after it.
        weight_decay: Decoupled weight decay, multiplied by the learning rate; the same for every optimizer.
        quick: Fewer learning rates, seeds and steps, for a first look.
        devices: How many of the local devices to use; 0 is all of them.
        max_memory: GiB that the runs trained together may take.

    Raises:
        ValueError: A setting is out of its range, or a name is unknown or appears twice.
    """

    task: str = "fashion-mlp"
    optimizers: tuple[str, ...] = ("celo2", "celo2-base", "adamw", "muon")
    learning_rates: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    num_learning_rates: int = 0
    seeds: int = 0
    steps: int = 0
    first_seed: int = 0
    weight_decay: float = 0.0
    quick: bool = False
    devices: int = 0
    max_memory: float = 4.0

    def __post_init__(self) -> None:
        """Checks the ranges and resolves the defaults that depend on `quick`."""
        for name in ("num_learning_rates", "seeds", "steps"):
            check_count(name, getattr(self, name))
        if not 0 <= self.weight_decay <= FLOAT32_MAX:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}.")
        check_devices(self.devices)
        check_memory(self.max_memory)
        for name, value in (QUICK if self.quick else FULL).items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        check_count("steps", self.steps, 2)
        check_seeds(self.first_seed, self.seeds)
        if not self.optimizers or len(set(self.optimizers)) != len(self.optimizers):
            raise ValueError(f"optimizers must be one or more different names, got {list(self.optimizers)}.")
        check_task_name(self.task)
        for name in self.optimizers:
            check_optimizer_name(name)
            self._check_own_rate(name)
        for name, rates in self.learning_rates.items():
            check_rates(f"the learning rates of {name}", rates)
            if name not in (*self.optimizers, ALL):
                raise ValueError(
                    f"there are learning rates for {name!r}, which is not among the optimizers "
                    f"({', '.join(self.optimizers)}){nearest_name(name, self.optimizers)}"
                )

    def _check_own_rate(self, name: str) -> None:
        """Raises a ValueError for a rate or weight decay of an optimizer without a learning rate."""
        if not sets_own_rate(name):
            return
        if name in self.learning_rates:
            raise ValueError(f"{name} sets its own step sizes; leave out its learning rates.")
        if self.weight_decay:
            raise ValueError(
                f"weight decay is measured by the learning rate, and {name} has none; leave out one of them."
            )

    @property
    def seed_range(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def learning_rates_of(self, spec: OptimizerSpec) -> tuple[float, ...]:
        """Returns the learning rates that an optimizer is tuned over, in ascending order."""
        default = spec.learning_rates(self.num_learning_rates)
        if spec.sets_own_rate:
            return default
        return tuple(sorted(self.learning_rates.get(spec.name, self.learning_rates.get(ALL, default))))


class CompareProgress(NamedTuple):
    """Progress of a comparison.

    Attributes:
        optimizer: The optimizer being trained; all of them during compilation.
        grid: The progress of its runs.
        done: The finished share of the whole comparison in [0, 1], by the measured step times.
    """

    optimizer: str
    grid: Progress
    done: float


class Entry(NamedTuple):
    """Results of one optimizer in a comparison."""

    name: str
    description: str
    grid: RunGrid
    cost: StepCost


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """Result of a comparison.

    Attributes:
        config: The settings.
        task: The facts about the task.
        entries: The results of the finished optimizers, in the requested order.
        unfinished: The names of the optimizers that an interrupt left unfinished.
        stop: The interrupt; None if there was none.
        created: The start time, ISO 8601 with the offset from UTC.
        seconds: The duration, compilation included.
        environment: The software and the machine (`describe_environment`).
    """

    config: CompareConfig
    task: TaskFacts
    entries: tuple[Entry, ...]
    unfinished: tuple[str, ...]
    created: str
    seconds: float
    environment: Mapping[str, str]
    stop: KeyboardInterrupt | None = None


def compare(
    config: CompareConfig, on_progress: Callable[[CompareProgress], None] | None = None
) -> CompareResult:
    """Runs a comparison.

    An interrupt (Ctrl-C) keeps the results of finished optimizers; if there are none, it propagates.

    Args:
        config: The settings.
        on_progress: Called before compilation and after each piece of training.

    Raises:
        ValueError: The task or an optimizer is unknown.
        KeyboardInterrupt: An interrupt came before the first optimizer was finished.
    """
    begin, created = time.monotonic(), datetime.datetime.now().astimezone()
    if on_progress:
        start = Progress(0.0, 0, config.steps, math.nan)
        on_progress(CompareProgress(", ".join(config.optimizers), start, 0.0))
    task = make_task(config.task)
    specs = [find_optimizer(name, num_steps=config.steps) for name in config.optimizers]
    with interruptible_pool() as pool:  # compiles all programs in parallel, on every core
        timer = pool.submit(StepTimer, task, {spec.name: _make_for_timing(spec, config) for spec in specs})
        runners = list(pool.map(functools.partial(_prepare, SharedTask(task), config), specs))
    costs = timer.result().measure()
    entries: list[Entry] = []
    stop = None
    try:
        reporters = _reporters(config, specs, costs, on_progress)
        for spec, runner, report in zip(specs, runners, reporters, strict=True):
            entries.append(Entry(spec.name, spec.description, runner.train(report), costs[spec.name]))
    except KeyboardInterrupt as interrupt:
        if not entries:
            raise
        stop = interrupt
    return CompareResult(
        config=config,
        task=describe_task(task),
        entries=tuple(entries),
        unfinished=config.optimizers[len(entries) :],
        created=created.isoformat(timespec="seconds"),
        seconds=time.monotonic() - begin,
        environment=describe_environment(),
        stop=stop,
    )


def _prepare(task: SharedTask, config: CompareConfig, spec: OptimizerSpec) -> GridRunner:
    return GridRunner(
        task,
        lambda schedule: spec.make(schedule, config.weight_decay),
        config.learning_rates_of(spec),
        seeds=config.seed_range,
        steps=config.steps,
        devices=config.devices,
        max_memory=config.max_memory * 2**30,
        schedule=spec.schedule,
        eval_params=spec.eval_params,
    )


def _make_for_timing(spec: OptimizerSpec, config: CompareConfig) -> optax.GradientTransformation:
    """Builds the optimizer at its lowest learning rate, where no run diverges."""
    return spec.make(config.learning_rates_of(spec)[0], config.weight_decay)


def _reporters(
    config: CompareConfig,
    specs: Sequence[OptimizerSpec],
    costs: Mapping[str, StepCost],
    on_progress: Callable[[CompareProgress], None] | None,
) -> list[OnProgress | None]:
    """Returns, for each optimizer, a callback that converts its progress to that of the comparison."""
    if on_progress is None:
        return [None] * len(specs)
    work = [costs[spec.name].seconds * len(config.learning_rates_of(spec)) for spec in specs]

    def report(index: int, progress: Progress) -> None:
        done = (sum(work[:index]) + progress.done * work[index]) / sum(work)
        on_progress(CompareProgress(specs[index].name, progress, done))

    return [functools.partial(report, index) for index in range(len(specs))]
