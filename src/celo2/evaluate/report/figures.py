"""Draws the figures of a suite with Matplotlib: training curves by task, and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from celo2.evaluate.analysis.standings import Standings, TaskRuns
from celo2.evaluate.analysis.summary import OptimizerRow
from celo2.evaluate.report.curves import (
    line_style,
    make_profile,
    train_band,
    upper_limit,
)
from celo2.report.kit import figure_label
from celo2.report.plots import STYLE, scale_losses

COLUMNS = 3


def draw_curves(standings: Standings) -> Figure:
    """Draws training curves at each optimizer's best setting, one panel per task."""
    count = len(standings.tasks)
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * columns + 0.6, 3.1 * rows + 0.8), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, task in zip(panels, standings.tasks, strict=False):
            _draw_task(axes, task, standings.optimizers)
        for axes in panels[count:]:
            axes.set_visible(False)
        handles = [
            Line2D([], [], color=_color(i), linestyle=_dash(i), label=figure_label(name))
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


def _draw_task(axes: Axes, task: TaskRuns, optimizers: Sequence[str]) -> None:
    for index, name in enumerate(optimizers):
        if name not in task.cells:
            continue
        band = train_band(task, task.cells[name])
        axes.plot(band.x, band.mean, _dash(index), color=_color(index), lw=1.4)
        axes.fill_between(band.x, band.low, band.high, color=_color(index), alpha=0.15, lw=0)
        if task.cells[name].best is None and band.x.size:
            axes.plot(band.x[-1], band.mean[-1], "x", color=_color(index))
    if not task.returns and all((np.asarray(line.get_ydata()) > 0).all() for line in axes.get_lines()):
        scale_losses(axes)
    top = upper_limit(task)
    if top is not None and axes.get_ylim()[0] < top < axes.get_ylim()[1]:
        axes.set_ylim(top=top)
    axes.set_title(figure_label(task.label), fontsize=8.5)
    axes.set_xlabel("steps")
    axes.set_ylabel("return" if task.returns else "training loss")


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
