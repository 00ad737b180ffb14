"""Tables of a suite's report: cells with text and sort keys, and their Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from celo2.evaluate.analysis.stats import Interval
from celo2.evaluate.analysis.summary import OptimizerRow, TaskRow
from celo2.report.kit import MeanStd, markdown_cell, shorten

NONE, DIVERGED = "–", "diverged"


class Datum(NamedTuple):
    """Cell of a table.

    Attributes:
        text: The displayed text.
        value: The sort key; None comes last.
        best: Whether the cell is highlighted.
    """

    text: str
    value: float | str | None
    best: bool = False


class Table(NamedTuple):
    """Table of column heads and rows of cells; the first column is text, the others are numbers."""

    columns: tuple[str, ...]
    rows: list[list[Datum]]


def summary_table(rows: Sequence[OptimizerRow], baseline: str) -> Table:
    """Builds the table with one row per optimizer."""
    columns = (
        "optimizer",
        "tasks",
        "score (IQM)",
        "95 % over seeds",
        "95 % over tasks",
        f"P(better than {shorten(baseline)})",
        "speed-up, steps",
        "speed-up, time",
        "time/step",
        "mean rank",
        "wins",
        "diverged",
    )
    return Table(columns, [_summary_cells(row) for row in rows])


def task_table(rows: Sequence[TaskRow]) -> Table:
    """Builds the table of one task, with one row per optimizer; all rows must be of that task."""
    returns = rows[0].unit == "return"
    what = "return" if returns else "loss"
    columns = (
        "optimizer",
        f"final train {what}",
        f"best valid {what}",
        "accuracy",
        "score",
        "speed-up, steps",
        "speed-up, time",
        "best rate",
        f"{what} ½ decade off",
        "decades within 10 %",
        "diverged",
        "ms/step",
        "state B/param",
    )
    return Table(columns, [_task_cells(row, returns) for row in rows])


def overview_table(rows: Sequence[TaskRow], optimizers: Sequence[str]) -> Table:
    """Builds the tasks × optimizers table of mean final training losses; the lowest is highlighted."""
    cells: dict[str, dict[str, TaskRow]] = {}
    for row in rows:
        cells.setdefault(row.task, {})[row.optimizer] = row
    lines = []
    for task, found in cells.items():
        finals = [row.final_train_loss.mean for row in found.values() if row.final_train_loss]
        best = min(finals, default=math.nan)
        lines.append([Datum(task, task), *(_final(found.get(name), best) for name in optimizers)])
    return Table(("task", *map(shorten, optimizers)), lines)


def as_markdown_table(table: Table) -> list[str]:
    """Formats a table as lines of Markdown; highlighted cells are bold."""
    rows = [[(f"**{text}**" if best else text) for text, best in map(_marked, row)] for row in table.rows]
    head = [list(map(markdown_cell, table.columns)), ["---", *["---:"] * (len(table.columns) - 1)]]
    return [f"| {' | '.join(cells)} |" for cells in (*head, *rows)]


def _marked(datum: Datum) -> tuple[str, bool]:
    return markdown_cell(datum.text), datum.best


def _summary_cells(row: OptimizerRow) -> list[Datum]:
    return [
        Datum(shorten(row.optimizer), row.optimizer),
        _number(row.tasks, "d"),
        _number(row.score, ".3f"),
        _interval(row.over_seeds),
        _interval(row.over_tasks),
        _number(row.improvement, ".2f"),
        _speed_up(row.speed_up),
        _speed_up(row.time_speed_up),
        _number(row.time_ratio, ".2f", unit="×"),
        _number(row.rank, ".2f"),
        _number(row.wins, "d"),
        Datum(f"{row.diverged}/{row.runs}", row.diverged / row.runs),
    ]


def _task_cells(row: TaskRow, returns: bool) -> list[Datum]:
    ratio = "" if row.time_ratio is None else f" ({row.time_ratio:.2g}×)"
    width = _number(row.width, ".2f")
    return [
        Datum(shorten(row.optimizer), row.optimizer),
        _mean(row.final_train_loss, returns),
        _mean(row.best_valid_loss, returns),
        _mean(row.accuracy) if row.accuracy else Datum(NONE, None),
        _number(row.score, ".3f"),
        _speed_up(row.speed_up),
        _speed_up(row.time_speed_up),
        _setting(row),
        _number(row.half_decade, ".3g", unit="×"),
        width if row.bounded in (True, None) else Datum(f"≥ {width.text}", width.value),
        Datum(f"{row.diverged}/{row.runs}", row.diverged / row.runs),
        Datum(f"{1e3 * row.seconds_per_step:.3g}{ratio}", row.seconds_per_step),
        _number(row.state_bytes_per_parameter, ".1f"),
    ]


def _setting(row: TaskRow) -> Datum:
    if row.learning_rate is None:
        return Datum(DIVERGED, None)
    decay = f", wd {row.weight_decay:g}" if row.weight_decay else ""
    edge = f" ({row.edge} tried)" if row.edge else ""
    return Datum(f"{row.learning_rate:g}{decay}{edge}", row.learning_rate)


def _final(row: TaskRow | None, best: float) -> Datum:
    if row is None:
        return Datum(NONE, None)
    cell = _mean(row.final_train_loss, row.unit == "return")
    return cell._replace(best=row.final_train_loss is not None and row.final_train_loss.mean == best)


def _mean(value: MeanStd | None, negate: bool = False) -> Datum:
    """Formats a mean with four digits and two of its deviation; returns get their original sign."""
    if value is None:
        return Datum(DIVERGED, None)
    mean = -value.mean if negate else value.mean
    return Datum(f"{mean:.4g}" + ("" if math.isnan(value.std) else f" ±{value.std:.2g}"), mean)


def _number(value: float | None, form: str, *, unit: str = "") -> Datum:
    if value is None or math.isnan(value):
        return Datum(NONE, None)
    return Datum("∞" if value == math.inf else f"{value:{form}}{unit}", value)


def _speed_up(value: float | None) -> Datum:
    return Datum("never", 0.0) if value == 0 else _number(value, ".2f", unit="×")


def _interval(value: Interval | None) -> Datum:
    return Datum(NONE, None) if value is None else Datum(f"{value.low:.3f} to {value.high:.3f}", value.low)
