"""Terminal table of a comparison's results."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from celo2.evaluate.comparison.compare import CompareResult
from celo2.evaluate.comparison.summary import Summary, summarize
from celo2.report.kit import cell
from celo2.training.protocol import SELECTION

COLUMNS = (
    "optimizer",
    "learning rate",
    "final train loss",
    "best train loss",
    "final valid loss",
    "best valid loss",
    "accuracy",
    "diverged",
    "ms/step",
    "state B/param",
)
DIVERGED, NONE = "diverged", "–"
WIDE = 130  # characters of the table with one line per optimizer


def make_rows(result: CompareResult) -> list[tuple[str, ...]]:
    """Formats the cells as text, one tuple per optimizer in the order of `COLUMNS`."""
    return [_make_row(summary) for summary in summarize(result)]


def make_table(result: CompareResult, width: int = WIDE) -> Table:
    """Builds the table for a terminal width: one line per optimizer, or one column on a narrow one.

    The optimizer with the lowest final training loss is in bold.
    """
    task, config, rows = result.task, result.config, make_rows(result)
    table = Table(
        title=escape(f"{task.name} on {task.dataset}, {config.steps} steps"),
        caption=f"at the learning rate with the {SELECTION} ({config.seeds}), ± their standard deviation",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    styles = ["bold" if name == _winner(result) else "" for name, *_ in rows]
    if width >= WIDE:
        for index, column in enumerate(COLUMNS):
            table.add_column(column.replace(" ", "\n"), justify="right" if index else "left", overflow="fold")
        for row, style in zip(rows, styles, strict=True):
            table.add_row(*map(cell, row), style=style)
    else:
        table.add_column(COLUMNS[0])
        for row, style in zip(rows, styles, strict=True):
            table.add_column(cell(row[0]), justify="right", overflow="fold", style=style)
        for cells in zip(COLUMNS[1:], *(row[1:] for row in rows), strict=True):
            table.add_row(*map(cell, cells))
    return table


def _winner(result: CompareResult) -> str | None:
    losses = {s.name: s.final_train_loss.mean for s in summarize(result) if s.final_train_loss}
    return min(losses, key=losses.__getitem__) if losses else None


def _make_row(summary: Summary) -> tuple[str, ...]:
    missing = DIVERGED if summary.learning_rate is None else NONE
    ratio = "" if summary.time_ratio is None else f" ({summary.time_ratio:.2g}×)"
    return (
        summary.name,
        DIVERGED if summary.learning_rate is None else f"{summary.learning_rate:g}",
        str(summary.final_train_loss or missing),
        str(summary.best_train_loss or missing),
        str(summary.final_valid_loss or missing),
        str(summary.best_valid_loss or missing),
        str(summary.accuracy or missing),
        f"{summary.num_diverged}/{summary.num_runs}",
        f"{1e3 * summary.seconds_per_step:.2f}{ratio}",
        f"{summary.state_bytes_per_parameter:.1f}",
    )
