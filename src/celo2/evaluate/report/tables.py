"""Tables of a report: the summary over tasks, all tasks at a glance, and one task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from celo2.evaluate.analysis.stats import Interval
from celo2.evaluate.analysis.summary import OptimizerRow, TaskRow
from celo2.report.kit import shorten
from celo2.report.table import DIVERGED, NONE, Datum, Table, mean_datum, number_datum
from celo2.zoo.specs import sets_own_rate


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
    """Builds the table of one task, with one row per optimizer; all rows must belong to that task.

    The losses that optimizers are ranked by come first; the lowest is highlighted.
    """
    best = _lowest(rows)
    lines = [_task_cells(row, best) for row in rows]
    return Table(tuple(lines[0]), [list(line.values()) for line in lines])


def split_task_table(rows: Sequence[TaskRow]) -> tuple[Table, Table]:
    """Builds `task_table` as two tables: losses, and speed with sensitivity."""
    table = task_table(rows)
    at = table.columns.index("score")
    return table.only(table.columns[:at]), table.only((table.columns[0], *table.columns[at:]))


def brief_task_table(rows: Sequence[TaskRow]) -> Table:
    """Builds `task_table` with only the columns that fit on a terminal."""
    table = task_table(rows)
    at = table.columns.index("score")
    return table.only((*table.columns[:at], "ms/step", "state B/param"))


def overview_table(rows: Sequence[TaskRow], optimizers: Sequence[str]) -> Table:
    """Builds the tasks × optimizers table of mean final losses; the lowest is highlighted."""
    cells: dict[str, dict[str, TaskRow]] = {}
    for row in rows:
        cells.setdefault(row.task, {})[row.optimizer] = row
    lines = []
    for task, found in cells.items():
        best = _lowest(list(found.values()))
        lines.append([Datum(task, task), *(_final(found.get(name), best) for name in optimizers)])
    return Table(("task", *map(shorten, optimizers)), lines)


def _summary_cells(row: OptimizerRow) -> list[Datum]:
    return [
        Datum(shorten(row.optimizer), row.optimizer),
        number_datum(row.tasks, "d"),
        number_datum(row.score, ".3f"),
        _interval(row.over_seeds),
        _interval(row.over_tasks),
        number_datum(row.improvement, ".2f"),
        _speed_up(row.speed_up),
        _speed_up(row.time_speed_up),
        number_datum(row.time_ratio, ".2f", unit="×"),
        number_datum(row.rank, ".2f"),
        number_datum(row.wins, "d"),
        Datum(f"{row.diverged}/{row.runs}", row.diverged / row.runs),
    ]


def _task_cells(row: TaskRow, best: float) -> dict[str, Datum]:
    """Returns the cells of a row by column name."""
    returns = row.unit == "return"
    what = "return" if returns else "loss"
    ratio = "" if row.time_ratio is None else f" ({row.time_ratio:.2g}×)"
    width = number_datum(row.width, ".2f")
    finals = {
        "validation": (f"final valid {what}", mean_datum(row.final_valid_loss, negate=returns)),
        "training": (f"final train {what}", mean_datum(row.final_train_loss, negate=returns)),
    }
    ranked = finals.pop(row.rank_by)
    return {
        "optimizer": Datum(shorten(row.optimizer), row.optimizer),
        ranked[0]: _final(row, best),
        **dict(finals.values()),
        f"best valid {what}": mean_datum(row.best_valid_loss, negate=returns),
        "accuracy": mean_datum(row.accuracy) if row.accuracy else Datum(NONE, None),
        "best rate": _setting(row),
        "diverged": Datum(f"{row.diverged}/{row.runs}", row.diverged / row.runs),
        "score": number_datum(row.score, ".3f"),
        "speed-up, steps": _speed_up(row.speed_up),
        "speed-up, time": _speed_up(row.time_speed_up),
        f"{what} ½ decade off": number_datum(row.half_decade, ".3g", unit="×"),
        "decades within 10 %": width
        if row.bounded in (True, None)
        else Datum(f"≥ {width.text}", width.value),
        "ms/step": Datum(f"{1e3 * row.seconds_per_step:.3g}{ratio}", row.seconds_per_step),
        "state B/param": number_datum(row.state_bytes_per_parameter, ".1f"),
    }


def _lowest(rows: Sequence[TaskRow]) -> float:
    """Returns the lowest mean final loss; NaN if all diverged."""
    return min((row.final_loss.mean for row in rows if row.final_loss), default=math.nan)


def _setting(row: TaskRow) -> Datum:
    if row.learning_rate is None:
        return Datum(DIVERGED, None)
    if sets_own_rate(row.optimizer):
        return Datum("its own", None)
    decay = f", wd {row.weight_decay:g}" if row.weight_decay else ""
    edge = f" ({row.edge} tried)" if row.edge else ""
    return Datum(f"{row.learning_rate:g}{decay}{edge}", row.learning_rate)


def _final(row: TaskRow | None, best: float) -> Datum:
    """Returns the cell with the final loss that optimizers are ranked by."""
    if row is None:
        return Datum(NONE, None)
    final = row.final_loss
    return mean_datum(final, negate=row.unit == "return", best=final is not None and final.mean == best)


def _speed_up(value: float | None) -> Datum:
    return Datum("never", 0.0) if value == 0 else number_datum(value, ".2f", unit="×")


def _interval(value: Interval | None) -> Datum:
    return Datum(NONE, None) if value is None else Datum(f"{value.low:.3f} to {value.high:.3f}", value.low)
