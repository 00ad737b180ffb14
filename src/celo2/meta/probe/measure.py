"""Trains the tasks of a set with one candidate, each at learning rates around its best.

The meta-loss is measured on tiny networks at the recipe's own inner rates; in use, a rule trains other
networks, at a tuned rate. So does a probe: it trains each task with the protocol of a comparison (cosine
after a warm-up, float32) and the same seeds for every candidate, so that candidates can be compared in pairs.

The rates lie on a ladder with ratio √2 around the task's own rate. A coarse round tries four of them, a
factor of four apart; each further round tries the neighbours of the best so far, at half the distance, and
continues beyond an end if the best is there. The loss of a run is its mean over the last fifth.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optax

from celo2.baselines import LEARNED, EvalParams, OptimizerSpec
from celo2.meta.task_sets import END_SHARE, TaskEntry, TaskSet, load_task_set
from celo2.training.grid import RunGrid
from celo2.training.protocol import NUM_EVALS
from celo2.training.runner import GridRunner
from celo2.training.task_step import SharedTask

LADDER = math.sqrt(2.0)  # ratio of neighbouring rates
FIRST_RUNGS = (-6, -2, 2, 6)  # rungs of the first round, around the task's own rate
STRIDES = (4, 2, 1)  # distances of the neighbours that further rounds try
LAST_RUNG = 20  # the search ends at a factor of 1,000 from the task's own rate
RATES_AT_ONCE = 2  # trained together by one compiled program
LOSS_FLOOR = 1e-6  # lower bound of losses in log ratios

TaskRecord = dict[str, Any]  # result of `Probe.measure` for a task
Make = Callable[..., optax.GradientTransformation]  # (schedule, weight decay, theta) → optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of a probe: tasks and seeds.

    Attributes:
        task_set: Declared set of tasks to train, by name or as a TOML file.
        tasks: Tasks of the set to train; none: all.
        seeds: Number of runs per task and rate; 0: the set's own.

    Raises:
        ValueError: The set has no such task, or a number is out of its range.
        OSError: There is no such set.
    """

    task_set: str = "choosing"
    tasks: tuple[str, ...] = ()
    seeds: int = 0

    def __post_init__(self) -> None:
        """Reads the set, so that mistakes are reported immediately."""
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if self.seeds < 0:
            raise ValueError(f"seeds must not be negative, got {self.seeds}; 0 is the set's own number.")
        self.load()

    def load(self) -> TaskSet:
        """Loads the tasks and seeds."""
        task_set = load_task_set(self.task_set)
        if self.tasks:
            task_set = task_set.select(self.tasks)
        return dataclasses.replace(task_set, seeds=self.seeds) if self.seeds else task_set

    def to_json(self) -> str:
        """Returns the settings as a JSON object, with a digest of the set that changes with its tasks."""
        task_set = self.load()
        facts = {**dataclasses.asdict(self), "seeds": task_set.seeds, "digest": task_set.digest}
        return json.dumps(facts, indent=2) + "\n"


class Probe:
    """Trains the tasks of a set; each is compiled only once, with theta as an argument of the program.

    Args:
        config: Settings of the probe.
        make_optimizer: `(schedule, weight decay, theta) → Optax transform`.
        schedule: Name of the learning-rate schedule in `celo2.training.protocol.SCHEDULES`.
        eval_params: Returns the parameters to validate, as in `OptimizerSpec`.
        middle_rate: Rate around which the search begins; 0: each task's own, for steps of root mean square 1.

    Attributes:
        config: Settings of the probe.
    """

    def __init__(
        self,
        config: ProbeConfig,
        make_optimizer: Make,
        *,
        schedule: str = "cosine",
        eval_params: EvalParams | None = None,
        middle_rate: float = 0.0,
    ) -> None:
        self.config = config
        self._set = config.load()
        self._make_optimizer, self._schedule, self._eval_params = make_optimizer, schedule, eval_params
        self._middle_rate = middle_rate
        self._runners: dict[str, GridRunner] = {}

    @classmethod
    def of_variant(cls, config: ProbeConfig, variant: str) -> Probe:
        """Makes a probe of a variant's public optimizer, "celo2" or "celo2-base"."""
        transform = LEARNED[variant]

        def make(schedule: Any, weight_decay: float, theta: Any) -> optax.GradientTransformation:
            return transform(schedule, weights=theta, weight_decay=weight_decay)

        return cls(config, make)

    @classmethod
    def of_spec(cls, config: ProbeConfig, spec: OptimizerSpec) -> Probe:
        """Makes a probe of a hand-designed optimizer, starting at the middle of its range of rates."""
        low, high = spec.learning_rate_range
        return cls(
            config,
            lambda schedule, weight_decay, _: spec.make(schedule, weight_decay),
            schedule=spec.schedule,
            eval_params=spec.eval_params,
            middle_rate=math.sqrt(low * high),
        )

    def measure(self, theta: Mapping[str, np.ndarray]) -> dict[str, TaskRecord]:
        """Trains every task with these weights; equal weights give equal records except for `seconds`."""
        return dict(self.measure_each(theta))

    def measure_each(self, theta: Mapping[str, np.ndarray]) -> Iterator[tuple[str, TaskRecord]]:
        """Yields the records of `measure`, each as soon as its task is compiled and trained."""
        inputs = ({name: np.asarray(array) for name, array in theta.items()},)
        for entry in self._set.tasks:
            begin = time.monotonic()
            record = self._measure_task(entry, inputs)
            yield entry.name, {**record, "seconds": round(time.monotonic() - begin, 3)}

    def _measure_task(self, entry: TaskEntry, inputs: tuple[Any, ...]) -> TaskRecord:
        middle = self._middle_rate or entry.rate
        known: dict[int, _Ends] = {}
        untrained = self._runner(entry, inputs).initial_loss
        while wanted := next_rungs({rung: ends.means for rung, ends in known.items()}):
            for at in range(0, len(wanted), RATES_AT_ONCE):
                rungs = [*wanted[at : at + RATES_AT_ONCE]]
                free = (rung for rung in range(rungs[-1] + 1, 4 * LAST_RUNG) if rung not in known)
                rungs += itertools.islice(free, RATES_AT_ONCE - len(rungs))  # the program's number
                rates = [middle * LADDER**rung for rung in rungs]
                grid = self._runner(entry, inputs).train(inputs=inputs, learning_rates=rates)
                known |= dict(zip(rungs, _ends_of(grid), strict=True))
        return _make_record({middle * LADDER**rung: known[rung] for rung in sorted(known)}, untrained)

    def _runner(self, entry: TaskEntry, inputs: tuple[Any, ...]) -> GridRunner:
        if entry.name not in self._runners:
            self._runners[entry.name] = GridRunner(
                SharedTask(entry.make()),
                lambda schedule, theta: self._make_optimizer(schedule, entry.weight_decay, theta),
                [entry.rate * LADDER**rung for rung in range(RATES_AT_ONCE)],  # replaced by later calls
                seeds=self._set.seed_range,
                steps=entry.steps,
                inputs=inputs,
                num_evals=NUM_EVALS,
                schedule=self._schedule,
                eval_params=self._eval_params,
            )
        return self._runners[entry.name]


@dataclasses.dataclass(frozen=True)
class _Ends:
    """Final losses of the runs at one rate, `(seeds,)`; infinite for diverged runs."""

    train: np.ndarray
    valid: np.ndarray

    @property
    def means(self) -> tuple[float, float]:
        return float(self.train.mean()), float(self.valid.mean())


def _ends_of(grid: RunGrid) -> list[_Ends]:
    """Returns the final losses at each rate of a grid."""
    steps = max(1, round(END_SHARE * grid.steps))
    evals = max(1, round(END_SHARE * grid.valid_loss.shape[-1]))
    with np.errstate(invalid="ignore"):
        train = grid.train_loss[..., -steps:].mean(-1, dtype=np.float64)
        valid = grid.valid_loss[..., -evals:].mean(-1, dtype=np.float64)
    lost = grid.diverged
    return [
        _Ends(np.where(lost[i], np.inf, train[i]), np.where(lost[i], np.inf, valid[i]))
        for i in range(len(train))
    ]


def next_rungs(known: Mapping[int, tuple[float, ...]]) -> list[int]:
    """Returns the rungs of the ladder to try next; none if the best of each measure has its neighbours.

    Args:
        known: Losses at each rung tried, one per measure (such as training and validation); infinite if a
            run diverged.

    Example:
        >>> next_rungs({})
        [-6, -2, 2, 6]
        >>> next_rungs({-6: (3.0,), -2: (1.0,), 2: (2.0,), 6: (4.0,)})
        [-4, 0]
    """
    if not known:
        return list(FIRST_RUNGS)
    for stride in STRIDES:
        wanted: set[int] = set()
        for measure in range(len(next(iter(known.values())))):
            best = min(known, key=lambda rung, measure=measure: known[rung][measure])
            if math.isfinite(known[best][measure]):
                wanted |= {best - stride, best + stride}
            else:
                wanted.add(min(known) - stride)  # everything diverged; a lower rate may work
        missing = sorted(rung for rung in wanted if abs(rung) <= LAST_RUNG and rung not in known)
        if missing:
            return missing
    return []


def _make_record(ends: Mapping[float, _Ends], untrained: float) -> TaskRecord:
    """Makes a task's record.

    Returns:
        `rates`, those tried in ascending order; `train_losses` and `valid_losses`, a list per rate with one
        loss per seed, null where it diverged; `losses`, the mean training loss at each rate; `loss` at the
        best rate and `spread`, its standard deviation over the seeds (null for one); `rate`, and `at_edge`,
        whether the search ended there; `valid_loss` and `valid_rate`, the same for validation; `untrained`,
        roughly the loss of an untrained network. `loss` is null if every rate diverged.
    """
    rates = list(ends)
    means = np.asarray([end.means for end in ends.values()])
    best, valid_best = (int(np.argmin(column)) for column in means.T)
    trained = bool(np.isfinite(means[best, 0]))
    chosen = ends[rates[best]].train
    return {
        "loss": float(means[best, 0]) if trained else None,
        "spread": float(chosen.std(ddof=1)) if trained and len(chosen) > 1 else None,
        "rate": rates[best] if trained else None,
        "at_edge": best in (0, len(rates) - 1),
        "valid_loss": float(means[valid_best, 1]) if trained else None,
        "valid_rate": rates[valid_best] if trained else None,
        "rates": rates,
        "losses": [_as_json(mean) for mean in means[:, 0]],
        "train_losses": [list(map(_as_json, end.train)) for end in ends.values()],
        "valid_losses": [list(map(_as_json, end.valid)) for end in ends.values()],
        "untrained": untrained,
    }


def _as_json(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def log_ratios(record: TaskRecord, reference: TaskRecord, measure: str = "train") -> np.ndarray:
    """Computes each seed's log ratio of losses to the reference, each at its own best rate, `(seeds,)`.

    Args:
        record: Record of a candidate.
        reference: Record of the reference, for the same seeds.
        measure: "train" or "valid".
    """
    return np.log(_losses_at_best(record, measure)) - np.log(_losses_at_best(reference, measure))


def _losses_at_best(record: TaskRecord, measure: str) -> np.ndarray:
    """Returns each seed's loss at the best rate, or an untrained network's loss if every rate diverged."""
    losses = record[f"{measure}_losses"]
    rate = record["rate" if measure == "train" else "valid_rate"]
    if rate is None:
        return np.full(len(losses[0]), max(record["untrained"], LOSS_FLOOR))
    return np.maximum(np.asarray(losses[record["rates"].index(rate)], np.float64), LOSS_FLOOR)


def compute_score(tasks: Mapping[str, TaskRecord], reference: Mapping[str, TaskRecord]) -> float | None:
    """Averages the log ratios of training losses to the reference over tasks and seeds; lower is better.

    Args:
        tasks: Records by task.
        reference: Records of the starting weights, for the same tasks and seeds.

    Returns:
        The score; None if a task diverged at every rate, since such weights cannot be the best.
    """
    if any(record["loss"] is None for record in tasks.values()):
        return None
    return float(np.mean([log_ratios(record, reference[name]).mean() for name, record in tasks.items()]))


def describe(tasks: Mapping[str, TaskRecord]) -> str:
    """Describes each task's loss and best rate, on one line."""
    return ", ".join(f"{name} {describe_task(record)}" for name, record in tasks.items())


def describe_task(record: TaskRecord) -> str:
    """Describes a task's loss and rate, and notes a rate at the edge of those tried."""
    if record["loss"] is None:
        return "diverged at every rate"
    spread = "" if record["spread"] is None else f" ±{record['spread']:.4f}"
    rates: Sequence[float] = record["rates"]
    edge = f" ({'highest' if record['rate'] == max(rates) else 'lowest'} tried)" if record["at_edge"] else ""
    return f"{record['loss']:.4f}{spread} at {record['rate']:.2g}{edge}"
