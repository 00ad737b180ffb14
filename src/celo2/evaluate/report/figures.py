"""Draws a report's figures with Matplotlib: one task in four panels, several tasks, scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from celo2.evaluate.analysis.cells import Cell
from celo2.evaluate.analysis.standings import Standings, TaskRuns
from celo2.evaluate.analysis.summary import OptimizerRow
from celo2.evaluate.report.curves import (
    Band,
    line_style,
    make_profile,
    ranked_band,
    train_band,
    upper_limit,
    valid_band,
)
from celo2.report.kit import figure_label
from celo2.report.plots import STYLE, scale_losses

COLUMNS = 3


def draw_curves(standings: Standings) -> Figure:
    """Draws each optimizer at its best setting: a single task in four panels, several in one panel each."""
    tasks = standings.tasks
    columns, panels = (2, 4) if len(tasks) == 1 else (min(COLUMNS, len(tasks)), len(tasks))
    rows = math.ceil(panels / columns)
    size = (11, 7.6) if len(tasks) == 1 else (4.2 * columns + 0.6, 3.1 * rows + 0.8)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        if len(tasks) == 1:
            _draw_task(axes, tasks[0], standings.optimizers)
        else:
            for panel, task in zip(axes, tasks, strict=False):
                _draw_ranked(panel, task, standings.optimizers)
        for panel in axes[panels:]:
            panel.set_visible(False)
        handles = [
            Line2D([], [], color=_color(i), linestyle=_dash(i), label=_legend(standings, name))
            for i, name in enumerate(standings.optimizers)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))
    return figure


def draw_scores(standings: Standings, rows: Sequence[OptimizerRow]) -> Figure:
    """Draws scores with their intervals, and performance profiles."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.9 + 0.28 * max(len(rows), 6)), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_intervals(left, standings, [row for row in rows if row.score is not None])
        _draw_profiles(right, standings)
    return figure


def _draw_task(panels: Sequence[Axes], task: TaskRuns, optimizers: Sequence[str]) -> None:
    """Draws validation, training by steps and by time, and the sensitivity to the learning rate."""
    what = "return" if task.returns else "loss"
    for axes, band, name in ((panels[0], valid_band, "validation"), (panels[1], train_band, "training")):
        _draw_bands(axes, task, optimizers, band)
        _label(axes, task, "steps", f"{name} {what}")
        axes.set_title(f"{name.capitalize()} {what}")
    _draw_bands(panels[2], task, optimizers, ranked_band, in_seconds=True)
    _label(panels[2], task, "seconds of one run (steps × time per step)", task.loss_name)
    panels[2].set_title(f"{task.loss_name.capitalize()} against time")
    _draw_sensitivity(panels[3], task, optimizers)


def _draw_ranked(axes: Axes, task: TaskRuns, optimizers: Sequence[str]) -> None:
    _draw_bands(axes, task, optimizers, ranked_band)
    _label(axes, task, "steps", task.loss_name)
    axes.set_title(figure_label(task.label), fontsize=8.5)


def _draw_bands(
    axes: Axes,
    task: TaskRuns,
    optimizers: Sequence[str],
    make_band: Callable[[TaskRuns, Cell], Band],
    *,
    in_seconds: bool = False,
) -> None:
    """Draws the mean over the seeds and the range from lowest to highest; diverged curves end in a cross."""
    for index, name in enumerate(optimizers):
        if name not in task.cells:
            continue
        cell = task.cells[name]
        if in_seconds and math.isnan(cell.seconds_per_step):
            continue  # it was not measured
        band = make_band(task, cell)
        x = band.x * (cell.seconds_per_step if in_seconds else 1)
        axes.plot(x, band.mean, _dash(index), color=_color(index), lw=1.5)
        axes.fill_between(x, band.low, band.high, color=_color(index), alpha=0.15, lw=0)
        if cell.best is None and band.x.size:
            axes.plot(x[-1], band.mean[-1], "x", color=_color(index))


def _draw_sensitivity(axes: Axes, task: TaskRuns, optimizers: Sequence[str]) -> None:
    """Draws the final loss by learning rate; rates with a diverged seed are crosses at the upper edge."""
    sign = -1.0 if task.returns else 1.0
    for index, name in enumerate(optimizers):
        if name not in task.cells:
            continue
        cell, color = task.cells[name], _color(index)
        good = {rate: sign * loss for rate, loss in cell.rates.items() if math.isfinite(loss)}
        axes.plot(list(good), list(good.values()), f"{_dash(index)}o", ms=3.5, color=color)
        if cell.best is not None:
            rate = cell.best.learning_rate
            axes.plot([rate], [good[rate]], "o", ms=9, mfc="none", mec=color)
        lost = [rate for rate in cell.rates if rate not in good]
        height = 0.99 - 0.03 * index  # so that crosses do not overlap
        axes.plot(lost, np.full(len(lost), height), "x", color=color, transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    _label(axes, task, "peak learning rate (crosses: diverged; circles: best)", f"final {task.loss_name}")
    axes.set_title("Learning-rate sensitivity")


def _label(axes: Axes, task: TaskRuns, x: str, y: str) -> None:
    """Scales and limits the loss axis and names both axes."""
    if not task.returns:
        scale_losses(axes)
    top = upper_limit(task)
    if top is not None and axes.get_lines() and axes.get_ylim()[0] < top < axes.get_ylim()[1]:
        axes.set_ylim(top=top)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _legend(standings: Standings, name: str) -> str:
    """Returns the label of an optimizer, with a note if it diverged on the only task."""
    lost = len(standings.tasks) == 1 and standings.tasks[0].cells[name].best is None
    return figure_label(name) + (" (diverged)" if lost else "")


def _draw_intervals(axes: Axes, standings: Standings, rows: Sequence[OptimizerRow]) -> None:
    """Draws an interval bar per optimizer: thin over tasks and seeds, thick over seeds."""
    for place, row in enumerate(rows):
        color = _color(standings.optimizers.index(row.optimizer))
        for interval, width in ((row.over_tasks, 1.2), (row.over_seeds, 4.0)):
            if interval is not None:
                axes.plot(interval, [place, place], color=color, lw=width, alpha=0.7)
        axes.plot(np.array([row.score]), [place], "o", color=color)
    axes.axvline(1.0, color="0.6", lw=0.8, ls=":")
    axes.set_yticks(range(len(rows)), [figure_label(row.optimizer) for row in rows])
    axes.invert_yaxis()
    baseline = figure_label(standings.baseline)
    axes.set_xlabel(f"score, IQM ({baseline} = 1; 95 % over tasks and seeds; thick: over seeds)")
    axes.set_title("Scores")


def _draw_profiles(axes: Axes, standings: Standings) -> None:
    thresholds, profiles = make_profile(standings)
    for name, shares in profiles.items():
        index = standings.optimizers.index(name)
        axes.plot(thresholds, shares, _dash(index), color=_color(index), lw=1.5, label=figure_label(name))
    axes.axvline(1.0, color="0.6", lw=0.8, ls=":")
    if thresholds[-1] > 5 * thresholds[0]:  # otherwise a log scale has hardly any ticks
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("score τ")
    axes.set_ylabel("share of runs with score ≥ τ")
    axes.set_title("Performance profiles")
    if profiles:
        axes.legend(fontsize=7.5)


def _color(index: int) -> str:
    return line_style(index)[0]


def _dash(index: int) -> Any:
    return line_style(index)[1]
