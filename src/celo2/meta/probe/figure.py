"""Plots paired comparisons: each candidate's log ratio on each task, with its interval."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
from matplotlib.figure import Figure

from celo2.meta.probe.paired import Comparison
from celo2.report.kit import figure_label
from celo2.report.plots import COLORS, STYLE


def draw_comparisons(measures: Mapping[str, Mapping[str, Comparison]], reference: str) -> Figure:
    """Draws one panel per measure: tasks from top to bottom, their mean last, candidates side by side.

    Args:
        measures: Title of the measure → candidate → its comparison; each has the same candidates and tasks.
        reference: Name of the reference, the line at zero.
    """
    candidates = list(next(iter(measures.values())))
    rows = [row.name for row in measures[next(iter(measures))][candidates[0]].rows] + ["mean"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.5 * len(measures), 1.2 + 0.45 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for panel, (title, comparisons) in zip(panels, measures.items(), strict=True):
            panel.axvline(0.0, color="0.3", lw=1)
            for number, (name, comparison) in enumerate(comparisons.items()):
                offset = 0.6 * ((number + 0.5) / len(candidates) - 0.5)
                values = [*comparison.rows, comparison.mean]
                panel.errorbar(
                    [100 * row.mean for row in values],
                    [place + offset for place in range(len(values))],
                    xerr=[
                        [100 * (row.mean - row.low) for row in values],
                        [100 * (row.high - row.mean) for row in values],
                    ],
                    fmt="o",
                    ms=4,
                    lw=1.2,
                    color=COLORS[number % len(COLORS)],
                    label=figure_label(name),
                )
            panel.axhline(len(rows) - 1.5, color="0.7", lw=0.8)
            panel.set_yticks(range(len(rows)), list(map(figure_label, rows)))
            panel.set_xlabel(f"{title}: log ratio to {figure_label(reference)}, %; lower is better")
        panels[0].invert_yaxis()
        panels[-1].legend(fontsize=7.5, loc="best")
    return figure
