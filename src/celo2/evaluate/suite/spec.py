"""Specification of a suite: tasks × optimizers × learning rates × weight decays × seeds."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_args

from celo2._utils.checks import check_count, check_rates, check_seeds
from celo2._utils.files import parse_object
from celo2.baselines import (
    OptimizerSpec,
    check_optimizer_name,
    find_optimizer,
    qualified_name,
    sets_own_rate,
)
from celo2.config import nearest_name
from celo2.constants import FLOAT32_MAX
from celo2.evaluate.suite.results import RankBy, RunSpec
from celo2.tasks.registry import check_task_name
from celo2.training.protocol import SCHEDULES

ALL = "all"  # stands for every tuned optimizer in `Suite.with_rates`
SUITES = ("tiny", "small", "full")  # names of the TOML files beside this module


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Grid of runs; by default, every optimizer has equally many settings.

    Attributes:
        name: The name for the report.
        tasks: The names of the tasks (`celo2.tasks.registry`), most of them with a size: `NAME@tiny`.
        optimizers: The names of the optimizers (`celo2.baselines`). Weights without an optimizer, such as
            "mine.safetensors", are given their full names, here and in `rates_of`.
        num_learning_rates: The number of values in each optimizer's default grid; an optimizer that sets its
            own step sizes has a single run instead.
        rates_of: Learning rates by optimizer that replace its default grid, for example those of a published
            sweep. The report states which optimizers were tuned over more settings.
        weight_decays: The weight decays, each combined with every learning rate.
        seeds: The number of runs of each setting.
        first_seed: The first of consecutive seeds.
        steps: The length of a run.
        steps_of: The length by task, for tasks with a different length.
        schedule: The learning-rate schedule, by its name in `celo2.training.protocol.SCHEDULES`; optimizers
            designed for a constant rate keep it.
        refine: Whether each optimizer gets two more learning rates: halfway, on a log scale, between its best
            and its neighbours in the default grid, or as far beyond the edge. Grids are coarse, so otherwise
            the chance position of the grid points can decide. Rates in `rates_of` are not refined.
        rank_by: The loss by which each optimizer's best setting is chosen and optimizers are ranked.

    Raises:
        ValueError: A name is unknown or appears twice, or a number is out of its range.
        OSError, ImportError: Weights without an optimizer cannot be read.
    """

    name: str
    tasks: tuple[str, ...]
    optimizers: tuple[str, ...]
    num_learning_rates: int = 7
    rates_of: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    weight_decays: tuple[float, ...] = (0.0,)
    seeds: int = 3
    first_seed: int = 0
    steps: int = 2000
    steps_of: Mapping[str, int] = dataclasses.field(default_factory=dict)
    schedule: str = "cosine"
    refine: bool = False
    rank_by: RankBy = "validation"

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        object.__setattr__(self, "optimizers", tuple(map(qualified_name, self.optimizers)))
        object.__setattr__(self, "rates_of", qualify_keys(self.rates_of))
        for field in ("tasks", "optimizers", "weight_decays"):
            values = getattr(self, field)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{field} must be one or more different ones, got {list(values)}.")
        for field, least in (("num_learning_rates", 1), ("seeds", 1), ("steps", 2)):
            check_count(field, getattr(self, field), least)
        check_seeds(self.first_seed, self.seeds)
        for task in self.tasks:
            check_task_name(task)
        for optimizer in self.optimizers:
            check_optimizer_name(optimizer)
        if not all(0 <= decay <= FLOAT32_MAX for decay in self.weight_decays):
            raise ValueError(
                f"weight decays must be finite and not negative, got {list(self.weight_decays)!s:.200}."
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"unknown schedule {self.schedule!r}{nearest_name(self.schedule, SCHEDULES)} "
                f"There are {', '.join(SCHEDULES)}."
            )
        if self.rank_by not in get_args(RankBy):
            raise ValueError(f"rank_by must be one of {', '.join(get_args(RankBy))}, got {self.rank_by!r}.")
        for optimizer, rates in self.rates_of.items():
            _check_rates(optimizer, rates, self.optimizers)
        for task, steps in self.steps_of.items():
            if task not in self.tasks:
                raise ValueError(f"steps_of has steps for {task!r}, which must be one of the tasks.")
            check_count(f"steps_of {task!r}", steps, 2)

    def groups(self, task: str) -> list[Group]:
        """Returns the groups of a task, one for each optimizer and weight decay."""
        steps = self.steps_of.get(task, self.steps)
        seeds = tuple(range(self.first_seed, self.first_seed + self.seeds))
        return [
            Group(
                task=task,
                optimizer=name,
                learning_rates=self.rates_of.get(name) or spec.learning_rates(self.num_learning_rates),
                weight_decay=decay,
                seeds=seeds,
                steps=steps,
                schedule=self.schedule if spec.schedule == "cosine" else spec.schedule,
                weights=spec.weights,
            )
            for name, spec in ((name, _spec(name, steps)) for name in self.optimizers)
            for decay in (self.weight_decays if not spec.sets_own_rate else (0.0,))
        ]

    def with_rates(self, rates: Mapping[str, Sequence[float]]) -> Suite:
        """Returns the suite with learning rates in place of default grids.

        Args:
            rates: The rates by optimizer; those of `"all"` apply to every tuned optimizer without an entry.
        """
        named = {name: values for name, values in qualify_keys(rates).items() if name != ALL}
        tuned = [name for name in self.optimizers if not sets_own_rate(name)] if ALL in rates else []
        given = {**dict.fromkeys(tuned, rates.get(ALL, ())), **named}
        rates_of = {**self.rates_of, **{name: tuple(sorted(values)) for name, values in given.items()}}
        return dataclasses.replace(self, rates_of=rates_of)

    def count_runs(self) -> int:
        """Returns the total number of runs, including refinement."""
        groups = [group for task in self.tasks for group in self.groups(task)]
        return sum(len(group.specs()) + self.count_refined(group) for group in groups)

    def count_refined(self, group: Group) -> int:
        """Returns the number of runs that refinement adds to a group; 0 for a single rate or given rates."""
        refined = self.refine and len(group.learning_rates) > 1 and group.optimizer not in self.rates_of
        return 2 * len(group.seeds) if refined else 0


class Group(NamedTuple):
    """Runs that are trained together: learning rates × seeds of one optimizer on one task.

    Fields not listed here are those of `RunSpec`.

    Attributes:
        task: The task, as in `RunSpec`.
        learning_rates: The learning rates of the runs.
        seeds: The seeds of the runs with each learning rate.
        weights: The required weights of the optimizer (`OptimizerSpec.weights`).
        dataset: The required data set of the task, if the folder already has runs on it; "": any.
    """

    task: str
    optimizer: str
    learning_rates: tuple[float, ...]
    weight_decay: float
    seeds: tuple[int, ...]
    steps: int
    schedule: str
    weights: str = ""
    dataset: str = ""

    def specs(self) -> list[RunSpec]:
        """Returns the runs in the order of `RunGrid`: the seeds of each learning rate together."""
        common = {
            "task": self.task,
            "optimizer": self.optimizer,
            "weight_decay": self.weight_decay,
            "steps": self.steps,
            "schedule": self.schedule,
        }
        return [
            RunSpec(learning_rate=rate, seed=seed, **common)
            for rate in self.learning_rates
            for seed in self.seeds
        ]

    def around(self, best: float) -> Group:
        """Returns a group with two rates: halfway between the best and its neighbours, on a log scale.

        Args:
            best: One of the learning rates, of which there must be several. At the edge of the grid, the new
                rate beyond is half as far away, on a log scale, as the neighbour inside.
        """
        rates = sorted(self.learning_rates)
        at = rates.index(best)
        inner = best / (rates[at - 1] if at else rates[1])  # distance from a neighbour, as a ratio
        below = best / rates[at - 1] if at else 1 / inner
        above = rates[at + 1] / best if at + 1 < len(rates) else inner
        found = (best / below**0.5, best * above**0.5)
        return self._replace(learning_rates=tuple(float(f"{rate:.3g}") for rate in found))

    def only(self, missing: Sequence[RunSpec]) -> Group | None:
        """Returns the smallest group that contains all missing runs; None if none is missing."""
        if not missing:
            return None
        rates, seeds = ({getattr(spec, name) for spec in missing} for name in ("learning_rate", "seed"))
        return self._replace(
            learning_rates=tuple(rate for rate in self.learning_rates if rate in rates),
            seeds=tuple(seed for seed in self.seeds if seed in seeds),
        )


def qualify_keys(rates: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Returns the learning rates by the full names of their optimizers (`celo2.baselines.qualified_name`)."""
    return {qualified_name(name): values for name, values in rates.items()}


def _check_rates(optimizer: str, rates: Sequence[float], optimizers: Sequence[str]) -> None:
    if optimizer not in optimizers:
        raise ValueError(f"rates_of has rates for {optimizer!r}, which must be one of the optimizers.")
    if sets_own_rate(optimizer):
        raise ValueError(f"{optimizer!r} sets its own step sizes; leave it out of rates_of.")
    check_rates(f"rates_of {optimizer!r}", rates)


def _spec(name: str, steps: int) -> OptimizerSpec:
    return find_optimizer(name, num_steps=steps if sets_own_rate(name) else None)


def load_suite(name_or_path: str, **changes: Any) -> Suite:
    """Loads a suite by its name in `SUITES`, or from a TOML or JSON file with the fields of `Suite`.

    Args:
        name_or_path: The name of a suite, such as "tiny", or a path.
        **changes: Fields to replace.

    Raises:
        ValueError: There is no suite or file of this name, or the file's content is invalid.
    """
    content = _read(name_or_path)
    fields = {field.name for field in dataclasses.fields(Suite)}
    unknown = [name for name in content if name not in fields]
    if "learning_rates" in unknown:
        raise ValueError(
            f"{name_or_path}: learning_rates is now num_learning_rates, how many of each optimizer's default "
            "grid; rates themselves go into [rates_of]."
        )
    if unknown:
        raise ValueError(
            f"{name_or_path}: unknown field {unknown[0]!r}{nearest_name(unknown[0], fields)} "
            f"There are {', '.join(sorted(fields))}."
        )
    for name, value in content.items():
        fits, wanted = _TYPES[name]
        if not fits(value):
            raise ValueError(f"{name_or_path}: {name} must be {wanted}, got {value!r:.80}.")
    content = {"name": Path(name_or_path).stem, **content, **changes}
    tasks = tuple(content.get("tasks", ()))
    content["steps_of"] = {
        task: steps
        for task, steps in content.get("steps_of", {}).items()
        if task in tasks or "tasks" not in changes
    }
    optimizers = set(map(qualified_name, content.get("optimizers", ())))
    content["rates_of"] = {
        name: tuple(rates)
        for name, rates in content.get("rates_of", {}).items()
        if "optimizers" not in changes or qualified_name(name) in optimizers
    }
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    try:
        suite = Suite(**{**content, **lists})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name_or_path}: {error}") from error
    rates = {name: tuple(map(float, values)) for name, values in suite.rates_of.items()}
    return dataclasses.replace(suite, rates_of=rates, weight_decays=tuple(map(float, suite.weight_decays)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "a text"),
    "tasks": (_are(_is_text), "a list of texts"),
    "optimizers": (_are(_is_text), "a list of texts"),
    "num_learning_rates": (_is_whole, "a whole number"),
    "rates_of": (_each(_are(_is_number)), "a table of lists of numbers"),
    "weight_decays": (_are(_is_number), "a list of numbers"),
    "seeds": (_is_whole, "a whole number"),
    "first_seed": (_is_whole, "a whole number"),
    "steps": (_is_whole, "a whole number"),
    "steps_of": (_each(_is_whole), "a table of whole numbers"),
    "schedule": (_is_text, "a text"),
    "refine": (_is_flag, "true or false"),
    "rank_by": (_is_text, "a text"),
}
"""Field of a suite's file → whether a value has its type, and the type in words."""


def _read(name_or_path: str) -> dict[str, Any]:
    if name_or_path in SUITES:
        file = resources.files("celo2").joinpath("evaluate", "suite", f"{name_or_path}.toml")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"no suite {name_or_path!r}{nearest_name(name_or_path, SUITES)} Expected {', '.join(SUITES)}, "
            "or the path of a TOML or JSON file, and there is no such file."
        )
    try:
        text = path.read_text(encoding="utf-8")
        return parse_object(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name_or_path} cannot be read as TOML (or JSON, if so named): {error}") from error
