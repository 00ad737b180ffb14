"""Plots meta-training runs: losses, gradients, faults, probes, and their agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from celo2.meta.report.history import RunHistory, smooth
from celo2.report.kit import figure_label
from celo2.report.plots import COLORS, STYLE, scale_losses

WINDOW = 0.02  # share of a run's iterations that a line is smoothed over
WIDE_RANGE = 3.0  # an axis is logarithmic if the ratio of highest to lowest is larger
MOST_POINTS = 600  # per line, so that the page of a long run stays small
LEGEND_COLUMNS = 2
DASHES = ("-", "--", ":", "-.")  # one per run, if colours denote tasks
MARKS = ("o", "s", "^", "D", "v")


def smoothing_window(run: RunHistory) -> int:
    """Returns the number of iterations that a run's lines are averaged over."""
    return max(1, round(WINDOW * len(run.records)))


def draw_runs(runs: Sequence[RunHistory]) -> Figure:
    """Draws seven panels, in which colours denote runs or, if one run's tasks are shown, tasks."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(18, 9), layout="constrained")
        (loss, gradient, signal, diverged), (scores, agreement, faults, unused) = figure.subplots(2, 4)
        unused.remove()
        _draw_losses(loss, runs)
        _draw_column(gradient, runs, "grad_norm", "Norm of the meta-gradient", "L2 norm", log=True)
        _draw_column(
            signal,
            runs,
            "signal_to_noise",
            "Signal to noise of the meta-gradient",
            "ratio of squares",
            log=True,
        )
        _draw_column(
            diverged, runs, "diverged", "Inner losses that were not finite", "share, %", factor=100.0
        )
        _draw_probes(scores, runs)
        _draw_agreement(agreement, runs)
        _draw_faults(faults, runs)
        for axes in (loss, gradient, signal, diverged, scores, faults):
            axes.set_xlabel("outer iteration")
        for axes in figure.axes:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(
                    fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=LEGEND_COLUMNS
                )
    return figure


def _draw_losses(axes: Axes, runs: Sequence[RunHistory]) -> None:
    """Draws the losses of each task if there are few enough tasks and runs, otherwise the mean over tasks."""
    tasks = list(dict.fromkeys(name for run in runs for name in run.task_losses))
    by_task = len(runs) <= len(DASHES) and len(tasks) * len(runs) <= 16
    for index, run in enumerate(runs):
        if not by_task:
            _draw_smoothed(axes, run, run.column("meta_loss"), COLORS[index % len(COLORS)], "-", run.name)
            continue
        for task, losses in run.task_losses.items():
            label = task if len(runs) == 1 else f"{task}, {run.name}"
            color = COLORS[tasks.index(task) % len(COLORS)]
            _draw_smoothed(axes, run, losses, color, DASHES[index], label)
    _scale_logarithmic(axes)
    axes.set_title("Meta-loss of each task" if by_task else "Meta-loss")
    axes.set_ylabel("meta-loss, nats")


def _draw_column(
    axes: Axes,
    runs: Sequence[RunHistory],
    name: str,
    title: str,
    unit: str,
    *,
    factor: float = 1.0,
    log: bool = False,
) -> None:
    for index, run in enumerate(runs):
        values = factor * run.column(name)
        _draw_smoothed(axes, run, values, COLORS[index % len(COLORS)], "-", run.name)
    if log:
        _scale_logarithmic(axes)
    else:
        axes.set_ylim(bottom=0.0)
    axes.set_title(title)
    axes.set_ylabel(unit)


def _draw_faults(axes: Axes, runs: Sequence[RunHistory]) -> None:
    """Draws cumulative counts: skipped iterations, and inner runs that diverged or ended well."""
    for index, run in enumerate(runs):
        color = COLORS[index % len(COLORS)]
        for dash, (name, label) in zip(
            DASHES,
            {"resets": "resets", "diverged_runs": "runs that ended diverged", "skipped": "skipped"}.items(),
            strict=False,
        ):
            counts = np.nancumsum(run.column(name))
            shown = _thin(len(counts))
            label = label if len(runs) == 1 else f"{label}, {run.name}"
            axes.plot(run.steps[shown], counts[shown], dash, color=color, lw=1.4, label=figure_label(label))
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=0.0)
    axes.set_title("Resets and faults so far")
    axes.set_ylabel("count")


def _draw_probes(axes: Axes, runs: Sequence[RunHistory]) -> None:
    """Draws each probed task's loss relative to the start, and the geometric mean; circles the best one."""
    for index, run in enumerate(runs):
        color = COLORS[index % len(COLORS)]
        label = run.name
        if len(runs) == 1:
            color, label = COLORS[-1], "all tasks"
            for number, task in enumerate(run.probe_tasks):
                style: Any = {"color": COLORS[number % len(COLORS)], "marker": MARKS[number % len(MARKS)]}
                axes.plot(
                    run.probe_steps,
                    run.probe_ratios(task),
                    ":",
                    ms=3,
                    lw=0.9,
                    label=figure_label(task),
                    **style,
                )
        if run.probes:
            style = {"ms": 4, "lw": 1.8, "color": color, "label": figure_label(label)}
            axes.plot(run.probe_steps, np.exp(run.probe_scores), "o-", **style)
        if run.best_probe is not None:
            ratio = np.exp(run.best_probe["score"])
            axes.plot(run.best_probe["step"], ratio, "o", ms=10, mfc="none", mec=color)
    axes.set_title("Probes: loss over that of the start")
    axes.set_ylabel("exp(score); lower is better")
    _say_if_empty(axes, "no probes in these runs (--probe-every)")


def _draw_agreement(axes: Axes, runs: Sequence[RunHistory]) -> None:
    """Draws each probe against the meta-loss of the iterations before it, to show their agreement."""
    for index, run in enumerate(runs):
        losses = run.meta_loss_at(run.probe_steps, smoothing_window(run))
        if np.isfinite(losses * run.probe_scores).any():
            color, mark = COLORS[index % len(COLORS)], MARKS[index % len(MARKS)]
            axes.plot(losses, np.exp(run.probe_scores), mark, ms=5, color=color, label=figure_label(run.name))
    axes.set_xlabel("smoothed meta-loss, nats")
    axes.set_ylabel("exp(score) of the probe")
    axes.set_title("Probe against meta-loss")
    _say_if_empty(axes, "no probe after the first iteration")


def _draw_smoothed(
    axes: Axes, run: RunHistory, values: np.ndarray, color: str, dash: str, label: str
) -> None:
    """Draws the raw numbers faintly, with their running mean on top."""
    shown = _thin(len(values))
    axes.plot(run.steps[shown], values[shown], lw=0.6, alpha=0.22, color=color)
    smoothed = smooth(values, smoothing_window(run))[shown]
    axes.plot(run.steps[shown], smoothed, dash, lw=1.6, color=color, label=figure_label(label))


def _thin(count: int) -> np.ndarray:
    """Returns the indices of at most `MOST_POINTS` of `count` points, including the last."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))


def _scale_logarithmic(axes: Axes) -> None:
    """Makes the y axis logarithmic if the values span a wide range."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    shown = np.concatenate([values[values > 0] for values in drawn] or [np.empty(0)])
    if shown.size and shown.max() > WIDE_RANGE * shown.min():
        scale_losses(axes)


def _say_if_empty(axes: Axes, text: str) -> None:
    if not axes.get_lines():
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
