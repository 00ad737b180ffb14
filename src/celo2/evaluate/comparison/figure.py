"""Draws the figure of a comparison: training against steps and time, validation, rate sensitivity."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from celo2.evaluate.comparison.compare import CompareResult, Entry
from celo2.report.kit import figure_label
from celo2.report.plots import COLORS, STYLE, scale_losses

DASHES = ("-", "-", "-", "-", "--", "--", "--", ":")


def draw_figure(result: CompareResult) -> Figure:
    """Draws four panels, each optimizer in one colour and, except in the last, at its best learning rate."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 7.6), layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_training(axes[0, 0], result, against_time=False)
        _draw_training(axes[0, 1], result, against_time=True)
        _draw_validation(axes[1, 0], result)
        _draw_sensitivity(axes[1, 1], result)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=max(1, min(4, len(labels))))
    return figure


def _draw_training(axes: Axes, result: CompareResult, *, against_time: bool) -> None:
    for index, entry in enumerate(result.entries):
        steps, curve = entry.grid.curve()
        x = steps * entry.cost.seconds if against_time else steps
        _draw_seeds(axes, index, entry, x, curve[_shown(entry)])
    scale_losses(axes)
    axes.set_xlabel("seconds of one run alone (steps × time per step)" if against_time else "steps")
    axes.set_ylabel("training loss")
    axes.set_title(f"Training loss against {'time' if against_time else 'steps'}")
    _limit(axes, result)


def _draw_validation(axes: Axes, result: CompareResult) -> None:
    for index, entry in enumerate(result.entries):
        _draw_seeds(axes, index, entry, entry.grid.valid_steps, entry.grid.valid_loss[_shown(entry)])
    scale_losses(axes)
    axes.set_xlabel("steps")
    axes.set_ylabel("validation loss")
    axes.set_title("Validation loss")
    _limit(axes, result)


def _draw_sensitivity(axes: Axes, result: CompareResult) -> None:
    """Draws the final training loss of each run; a diverged one is a cross at the upper edge."""
    for index, entry in enumerate(result.entries):
        grid, color = entry.grid, COLORS[index % len(COLORS)]
        finite = np.isfinite(grid.scores)
        axes.plot(grid.learning_rates[finite], grid.scores[finite], DASHES[index % len(DASHES)], color=color)
        rates = np.broadcast_to(grid.learning_rates[:, None], grid.diverged.shape)
        good = ~grid.diverged
        axes.plot(rates[good], grid.final_train_loss[good], "o", ms=3.5, color=color)
        if grid.best is not None:
            axes.plot(
                grid.learning_rates[grid.best], grid.scores[grid.best], "o", ms=9, mfc="none", mec=color
            )
        lost = rates[grid.diverged]
        height = 0.99 - 0.03 * index  # so that crosses do not overlap
        axes.plot(lost, np.full(lost.shape, height), "x", color=color, transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    scale_losses(axes)
    axes.set_xlabel("peak learning rate (crosses: diverged; circles: best)")
    axes.set_ylabel("final training loss")
    axes.set_title("Learning-rate sensitivity")


def _draw_seeds(axes: Axes, index: int, entry: Entry, x: np.ndarray, losses: np.ndarray) -> None:
    """Draws the mean over the seeds and a band from lowest to highest; losses are `(S, P)`."""
    color, label = COLORS[index % len(COLORS)], figure_label(entry.name)
    if entry.grid.best is None:
        label = f"{label} (diverged)"
    alive = np.isfinite(losses).all(axis=0)
    mean = losses[:, alive].mean(axis=0)
    axes.plot(x[alive], mean, DASHES[index % len(DASHES)], color=color, lw=1.6, label=label)
    if not alive.any():
        return  # the legend names it nevertheless
    if len(losses) > 1:
        low, high = losses[:, alive].min(axis=0), losses[:, alive].max(axis=0)
        axes.fill_between(x[alive], low, high, color=color, alpha=0.18, lw=0)
    if not alive.all():
        axes.plot(x[alive][-1], mean[-1], "x", color=color)


def _shown(entry: Entry) -> int:
    """Returns the index of the best learning rate, or of the farthest one if all have diverged runs."""
    grid = entry.grid
    if grid.best is not None:
        return grid.best
    reached = np.where(grid.diverged_at < 0, grid.steps, grid.diverged_at)
    return int(reached.min(axis=-1).argmax())


def _limit(axes: Axes, result: CompareResult) -> None:
    """Limits the loss axis to 2 × the initial loss, so that a diverging curve does not squeeze the others."""
    if result.task.initial_loss is None:
        return
    top = 2.0 * result.task.initial_loss
    low, high = axes.get_ylim()
    if low < top < high and axes.get_lines():
        axes.set_ylim(top=top)
