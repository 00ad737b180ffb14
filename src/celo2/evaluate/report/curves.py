"""Computes the data for a suite's figures: bands over seeds, rate sensitivities, performance profiles.

Returns have their original sign here, since readers expect higher returns to be better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from celo2.evaluate.analysis import stats
from celo2.evaluate.analysis.cells import Cell, stack_curves
from celo2.evaluate.analysis.standings import Standings, TaskRuns
from celo2.evaluate.analysis.summary import OptimizerRow, scored_tasks
from celo2.evaluate.suite.results import RunResult
from celo2.report.kit import page_label
from celo2.report.plots import COLORS

MAX_POINTS = 120  # maximum points of a curve
DIGITS = 5  # significant digits of numbers in the page
LINES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}  # Matplotlib's names and Plotly's


class Band(NamedTuple):
    """Mean, lowest and highest over the seeds, `(P,)` each, up to the point where a seed diverged."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def train_band(task: TaskRuns, cell: Cell) -> Band:
    """Returns the band of the training loss against the steps, at the displayed setting."""
    return _band(task, cell, lambda run: (run.train_steps, run.train_loss))


def valid_band(task: TaskRuns, cell: Cell) -> Band:
    """Returns the band of the validation loss against the steps, at the displayed setting."""
    return _band(task, cell, lambda run: (run.valid_steps, run.valid_loss))


def ranked_band(task: TaskRuns, cell: Cell) -> Band:
    """Returns the band of the loss that optimizers are ranked by, at the displayed setting."""
    return (valid_band if task.rank_by == "validation" else train_band)(task, cell)


def upper_limit(task: TaskRuns) -> float | None:
    """Returns the highest displayed loss, so that a diverging curve does not squeeze the others."""
    initial = task.facts.initial_loss
    return None if task.returns or initial is None or initial <= 0 else 1.5 * initial


def line_style(index: int) -> tuple[str, str]:
    """Returns the colour and Matplotlib dash style of the optimizer at this index; 28 pairs are distinct."""
    return COLORS[index % len(COLORS)], list(LINES)[index // len(COLORS) % len(LINES)]


def make_profile(standings: Standings) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns log-spaced thresholds, `(T,)`, and each optimizer's share of runs that reach them, `(T,)`."""
    scores = {
        name: [task.scores(name) for task in tasks]
        for name in standings.optimizers
        if (tasks := scored_tasks(standings, name))
    }
    found = np.concatenate([one for of_name in scores.values() for one in of_name]) if scores else np.ones(1)
    usable = found[np.isfinite(found) & (found > 0)]
    low, high = (usable.min(), usable.max()) if usable.size else (1.0, 1.0)
    thresholds = np.geomspace(max(low * 0.95, 1e-3), min(high * 1.05, 1e3), 200)
    return thresholds, {name: stats.performance_profile(of, thresholds) for name, of in scores.items()}


def figure_data(standings: Standings, rows: Sequence[OptimizerRow]) -> dict[str, Any]:
    """Returns the data for all figures of the page, as JSON types."""
    thresholds, profiles = make_profile(standings)
    return {
        "baseline": page_label(standings.baseline),
        "optimizers": [
            {"name": page_label(name), "color": line_style(i)[0], "dash": LINES[line_style(i)[1]]}
            for i, name in enumerate(standings.optimizers)
        ],
        "tasks": [_task_data(task) for task in standings.tasks],
        "scores": [_score_data(row) for row in rows if row.score is not None],
        "profile": {
            "x": _plain(thresholds),
            "y": {page_label(name): _plain(y) for name, y in profiles.items()},
        },
    }


def _task_data(task: TaskRuns) -> dict[str, Any]:
    return {
        "label": page_label(task.label),
        "what": "return" if task.returns else "loss",
        "rank": "valid" if task.rank_by == "validation" else "train",
        "tokens": task.facts.tokens_per_batch,
        "top": upper_limit(task),
        "curves": {page_label(name): _curve_data(task, cell) for name, cell in task.cells.items()},
        "rates": {page_label(name): _rate_data(task, cell) for name, cell in task.cells.items()},
    }


def _curve_data(task: TaskRuns, cell: Cell) -> dict[str, Any]:
    bands = {"train": train_band(task, cell), "valid": valid_band(task, cell)}
    return {
        "setting": str(cell.shown),
        "diverged": cell.best is None,
        "seconds": cell.seconds_per_step,
        **{kind: {name: _plain(x) for name, x in band._asdict().items()} for kind, band in bands.items()},
    }


def _rate_data(task: TaskRuns, cell: Cell) -> dict[str, Any]:
    """Returns the mean final losses by learning rate, and the rates at which a seed diverged."""
    sign = -1.0 if task.returns else 1.0
    good = {rate: sign * loss for rate, loss in cell.rates.items() if math.isfinite(loss)}
    return {
        "x": list(good),
        "y": _plain(np.array(list(good.values()))),
        "best": cell.best and cell.best.learning_rate,
        "lost": [rate for rate in cell.rates if rate not in good],
    }


def _score_data(row: OptimizerRow) -> dict[str, Any]:
    """Returns the score with its interval, without numbers that are not finite, which are not drawn."""
    score = math.nan if row.score is None else row.score
    interval = row.over_tasks or row.over_seeds or stats.Interval(score, score)
    numbers = {"score": score, "low": interval.low, "high": interval.high}
    return {
        "name": page_label(row.optimizer),
        **{key: x if math.isfinite(x) else None for key, x in numbers.items()},
    }


def _band(task: TaskRuns, cell: Cell, curve: Callable[[RunResult], tuple[np.ndarray, np.ndarray]]) -> Band:
    runs = cell.settings[cell.shown]
    steps, losses = stack_curves([curve(run) for run in runs])
    losses *= -1.0 if task.returns else 1.0
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(MAX_POINTS, len(steps))).round().astype(int))
    alive = chosen[np.isfinite(losses[:, chosen]).all(0)]
    shown = losses[:, alive]
    return Band(steps[alive], shown.mean(0), shown.min(0), shown.max(0))


def _plain(values: np.ndarray) -> list[float]:
    """Rounds numbers to `DIGITS` digits, since the page contains many."""
    return [float(f"{value:.{DIGITS}g}") for value in values]
