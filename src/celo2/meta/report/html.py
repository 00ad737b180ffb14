"""Writes the HTML report of meta-training runs: a table, a figure and a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich import box
from rich.table import Table

from celo2._utils.files import write_atomic
from celo2.meta.probe import describe_task
from celo2.meta.report.figures import WINDOW, draw_runs, smoothing_window
from celo2.meta.report.history import RunHistory, smooth
from celo2.report.kit import cell, render_page, shorten
from celo2.report.plots import figure_svg, save_png

COLUMNS = (
    "run",
    "iterations",
    "smoothed meta-loss at first",
    "smoothed meta-loss at last",
    "gradient norm",
    "signal to noise",
    "diverged, %",
    "resets",
    "skipped",
    "probes",
    "best score",
    "best at",
)
NONE = "–"


def write_report(runs: Sequence[RunHistory], folder: Path) -> dict[str, Path]:
    """Writes report.png and report.html into a folder; returns their paths by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"figure": folder / "report.png", "report": folder / "report.html"}
    figure = draw_runs(runs)
    save_png(figure, paths["figure"])
    write_atomic(paths["report"], render_runs(runs, figure_svg(figure)).encode())
    return paths


def render_runs(runs: Sequence[RunHistory], figure: str) -> str:
    """Renders the page; `figure` is an `<svg>` element."""
    return render_page(
        "meta/report/run.html.j2",
        names=[run.name for run in runs],
        verdict=[_verdict(run) for run in runs],
        columns=COLUMNS,
        rows=make_rows(runs),
        figure=Markup(figure),
        window=f"{100 * WINDOW:g}",
        probed=[(run.name, run.probe_tasks, _probe_rows(run)) for run in runs if run.probes],
        recipes=_recipes(run.recipe for run in runs),
    )


def make_table(runs: Sequence[RunHistory]) -> Table:
    """Makes the summary for a terminal, with a column per run."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(COLUMNS[0])
    rows = make_rows(runs)
    for row in rows:
        table.add_column(cell(row[0]), justify="right", overflow="fold")
    for cells in zip(COLUMNS[1:], *(row[1:] for row in rows), strict=True):
        table.add_row(*map(cell, cells))
    return table


def make_rows(runs: Sequence[RunHistory]) -> list[tuple[str, ...]]:
    """Formats the table's cells: a tuple per run, in the order of `COLUMNS`."""
    return [_make_row(run) for run in runs]


def _make_row(run: RunHistory) -> tuple[str, ...]:
    """Formats one run; losses and norm are means over the first or last share `WINDOW` of the iterations."""
    window, best = smoothing_window(run), run.best_probe
    losses = run.column("meta_loss")
    return (
        shorten(run.name),
        str(int(run.steps[-1])),
        _number(smooth(losses[:window], window)[-1], ".4f"),
        _number(smooth(losses, window)[-1], ".4f"),
        _number(smooth(run.column("grad_norm"), window)[-1], ".3g"),
        _number(smooth(run.column("signal_to_noise"), window)[-1], ".3g"),
        _number(100 * np.nanmean(run.column("diverged")), ".2f"),
        str(int(np.nansum(run.column("resets")))),
        str(int(np.nansum(run.column("skipped")))),
        str(len(run.probes)),
        NONE if best is None else f"{best['score']:+.4f}",
        NONE if best is None else str(best["step"]),
    )


def _verdict(run: RunHistory) -> str:
    """Summarises a run's outcome in a sentence."""
    window, losses = smoothing_window(run), run.column("meta_loss")
    first, last = (_number(smooth(part, window)[-1], ".4f") for part in (losses[:window], losses))
    text = f"{run.name}: smoothed meta-loss {first} at first, {last} after {int(run.steps[-1])} iterations"
    if run.best_probe is None:
        return f"{text}."
    best = run.best_probe
    change = 100 * math.expm1(best["score"])
    chosen = "the start has the best probe" if best["step"] == 0 else f"the best probe is at {best['step']}"
    return f"{text}; {chosen}, with losses {change:+.1f} % from the start's."


def _probe_rows(run: RunHistory) -> list[tuple[str, list[str], str, str, bool]]:
    """Formats the probes: iteration, a cell for each task, score, seconds, and whether it is the best."""
    return [
        (
            str(probe["step"]),
            [
                describe_task(probe["tasks"][name]) if name in probe["tasks"] else NONE
                for name in run.probe_tasks
            ],
            NONE if probe["score"] is None else f"{probe['score']:+.4f}",
            f"{probe.get('seconds', math.nan):.1f}",
            probe is run.best_probe,
        )
        for probe in run.probes
    ]


def _recipes(recipes: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Tabulates every option's value in each run; options that differ come first."""
    known = list(recipes)
    names = sorted({name for recipe in known for name in recipe})
    rows = [(name, [_text(recipe.get(name, NONE)) for recipe in known]) for name in names]
    return sorted(rows, key=lambda row: len(set(row[1])) == 1)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) or NONE if isinstance(value, list) else str(value)


def _number(value: float | np.floating[Any], form: str) -> str:
    return format(value, form) if np.isfinite(value) else NONE
