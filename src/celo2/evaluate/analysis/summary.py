"""Summary rows of a suite's report: one per task and optimizer, and one per optimizer."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from celo2.evaluate.analysis import stats
from celo2.evaluate.analysis.cells import Cell
from celo2.evaluate.analysis.standings import Standings, TaskRuns
from celo2.evaluate.suite.results import RankBy
from celo2.report.kit import MeanStd


class TaskRow(NamedTuple):
    """Results of one optimizer on one task at its best setting; fields are None if it has none.

    Attributes:
        task: The label of the task.
        optimizer: The name of the optimizer.
        unit: The unit of the losses; "return": they are negated returns.
        learning_rate: The best learning rate.
        weight_decay: The best weight decay.
        edge: "lowest" or "highest" if the best learning rate lies at that edge of the grid, otherwise "".
        settings: The number of settings tried.
        rank_by: The loss that optimizers are tuned and ranked by on the task.
        final_valid_loss: The validation loss after the last step.
        final_train_loss: The mean objective over the last 5 % of the steps.
        best_train_loss: The lowest point of the training curve.
        best_valid_loss: The lowest validation loss.
        accuracy: The validation accuracy after the last step, in [0, 1]; None for tasks without one.
        score: The mean score (`stats.normalized_scores`); None if scores are undefined.
        speed_up: The speed-up over the baseline's run, in steps, by training loss (`TaskRuns.speed_up`).
        time_speed_up: The speed-up in wall-clock time.
        half_decade: The loss ratio half a decade off the best rate (`stats.RateSensitivity`).
        width: The range of rates within 10 % of the best loss, in decades.
        bounded: Whether the width ends inside the grid; otherwise it is a lower bound.
        diverged: The number of diverged runs over all settings.
        runs: The total number of runs.
        seconds_per_step: The wall-clock time of a step.
        time_ratio: The time of a step relative to the baseline's; None if they were measured differently.
        state_bytes_per_parameter: The number of bytes of optimizer state per parameter.
    """

    task: str
    optimizer: str
    unit: str
    learning_rate: float | None
    weight_decay: float | None
    edge: str
    settings: int
    rank_by: RankBy
    final_valid_loss: MeanStd | None
    final_train_loss: MeanStd | None
    best_train_loss: MeanStd | None
    best_valid_loss: MeanStd | None
    accuracy: MeanStd | None
    score: float | None
    speed_up: float | None
    time_speed_up: float | None
    half_decade: float | None
    width: float | None
    bounded: bool | None
    diverged: int
    runs: int
    seconds_per_step: float
    time_ratio: float | None
    state_bytes_per_parameter: float

    @property
    def final_loss(self) -> MeanStd | None:
        """The final loss that optimizers are ranked by."""
        return self.final_valid_loss if self.rank_by == "validation" else self.final_train_loss


class OptimizerRow(NamedTuple):
    """Results of one optimizer over all its tasks; fields are None if no task has a score.

    Attributes:
        optimizer: The name of the optimizer.
        tasks: The number of tasks with scores, on which the next seven fields are based.
        score: The interquartile mean of the scores of all seeds on all tasks.
        over_seeds: The 95 % interval of the score over seeds on the same tasks; None with one seed.
        over_tasks: The 95 % interval of the score over tasks and seeds; None with one task.
        improvement: The probability that a run ends lower than a run of the baseline.
        speed_up: The lower median speed-up over the tasks, in steps; 0: never reaches the baseline's loss.
        time_speed_up: The lower median speed-up in wall-clock time.
        time_ratio: The time per step relative to the baseline's, as a geometric mean over the tasks.
        rank: The mean rank by final loss over all its tasks; 1 is best.
        wins: The number of tasks on which no other optimizer ended lower.
        diverged: The number of diverged runs.
        runs: The total number of runs.
    """

    optimizer: str
    tasks: int
    score: float | None
    over_seeds: stats.Interval | None
    over_tasks: stats.Interval | None
    improvement: float | None
    speed_up: float | None
    time_speed_up: float | None
    time_ratio: float | None
    rank: float
    wins: int
    diverged: int
    runs: int


def rank_tasks(standings: Standings) -> list[TaskRow]:
    """Returns a row per task and optimizer: tasks in order, optimizers by final loss, best first."""
    rows = []
    for task in standings.tasks:
        ranked = sorted(task.cells.values(), key=lambda cell: cell.mean_loss)
        rows += [_task_row(task, cell) for cell in ranked]
    return rows


def rank_optimizers(standings: Standings) -> list[OptimizerRow]:
    """Returns a row per optimizer, sorted by the number of tasks with scores, then by score, highest first.

    Scores over fewer tasks are not comparable, so they follow; optimizers without a score come last.
    """
    ranks = dict(zip(standings.optimizers, stats.mean_ranks(_loss_table(standings)), strict=True))
    rows = [_optimizer_row(standings, name, float(ranks[name])) for name in standings.optimizers]

    def standing(row: OptimizerRow) -> tuple[int, float]:
        return row.tasks, -math.inf if row.score is None else row.score

    return sorted(rows, key=standing, reverse=True)


def scored_tasks(standings: Standings, optimizer: str) -> list[TaskRuns]:
    """Returns the tasks on which an optimizer has a score."""
    return [t for t in standings.tasks if optimizer in t.cells and t.baseline_loss is not None]


def _task_row(task: TaskRuns, cell: Cell) -> TaskRow:
    name = cell.optimizer
    rates = task.rate_sensitivity(name)
    return TaskRow(
        task=task.label,
        optimizer=name,
        unit=task.facts.unit,
        learning_rate=cell.best and cell.best.learning_rate,
        weight_decay=cell.best and cell.best.weight_decay,
        edge=cell.edge,
        settings=len(cell.settings),
        rank_by=task.rank_by,
        final_valid_loss=cell.measure(lambda run: run.final_valid_loss),
        final_train_loss=cell.measure(lambda run: run.final_train_loss),
        best_train_loss=cell.measure(lambda run: run.best_train_loss),
        best_valid_loss=cell.measure(lambda run: float(stats.lowest(run.valid_loss))),
        accuracy=_accuracy(cell),
        score=None if task.baseline_loss is None else float(task.scores(name).mean()),
        speed_up=task.speed_up(name),
        time_speed_up=task.speed_up(name, in_seconds=True),
        half_decade=rates and rates.half_decade,
        width=rates and rates.width,
        bounded=rates and rates.bounded,
        diverged=len(cell.diverged),
        runs=len(cell.runs),
        seconds_per_step=cell.seconds_per_step,
        time_ratio=task.time_ratio(name),
        state_bytes_per_parameter=cell.runs[0].state_bytes / task.facts.num_parameters,
    )


def _accuracy(cell: Cell) -> MeanStd | None:
    finals = [run.valid_accuracy[-1] for run in cell.best_runs if run.valid_accuracy is not None]
    return MeanStd.over(np.array(finals))


def _optimizer_row(standings: Standings, name: str, rank: float) -> OptimizerRow:
    cells = [task.cells[name] for task in standings.tasks if name in task.cells]
    return OptimizerRow(
        optimizer=name,
        **_score_columns(scored_tasks(standings, name), name),
        rank=rank,
        wins=sum(name in task.winners() for task in standings.tasks),
        diverged=sum(len(cell.diverged) for cell in cells),
        runs=sum(len(cell.runs) for cell in cells),
    )


_RELATIVE = ("score", "over_seeds", "over_tasks", "improvement", "speed_up", "time_speed_up", "time_ratio")


def _score_columns(tasks: list[TaskRuns], name: str) -> dict:
    """Returns the fields of `OptimizerRow` that are relative to the baseline."""
    if not tasks:
        return {"tasks": 0, **dict.fromkeys(_RELATIVE)}
    scores = [task.scores(name) for task in tasks]
    ratios = [ratio for task in tasks if (ratio := task.time_ratio(name))]
    repeated = any(len(one) > 1 for one in scores)
    return {
        "tasks": len(tasks),
        "score": float(stats.interquartile_mean(np.concatenate(scores))),
        "over_seeds": stats.bootstrap_interval(scores) if repeated else None,
        "over_tasks": stats.bootstrap_interval(scores, tasks=True) if len(tasks) > 1 else None,
        "improvement": stats.probability_of_improvement(
            [task.cells[name].losses for task in tasks], [task.cells[task.baseline].losses for task in tasks]
        ),
        "speed_up": _median([task.speed_up(name) for task in tasks]),
        "time_speed_up": _median([task.speed_up(name, in_seconds=True) for task in tasks]),
        "time_ratio": float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
    }


def _median(values: list[float | None]) -> float | None:
    """Returns the lower median, since 0 (never reached) and a speed-up cannot be averaged."""
    known = [value for value in values if value is not None]
    return float(np.quantile(known, 0.5, method="inverted_cdf")) if known else None


def _loss_table(standings: Standings) -> np.ndarray:
    """Returns mean final losses, `(tasks, optimizers)`; NaN where an optimizer was not run."""
    rows = [
        [task.cells[name].mean_loss if name in task.cells else math.nan for name in standings.optimizers]
        for task in standings.tasks
    ]
    return np.array(rows)
