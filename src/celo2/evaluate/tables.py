"""The table at the end of a comparison."""

from __future__ import annotations

from rich import box
from rich.table import Table

from celo2.evaluate.compare import CompareResult
from celo2.evaluate.protocol import SELECTION
from celo2.evaluate.summary import Summary, summarize

__all__ = ["COLUMNS", "make_rows", "make_table"]

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
    "state bytes/param",
)
DIVERGED, NONE = "diverged", "–"


def make_rows(result: CompareResult) -> list[tuple[str, ...]]:
    """The table's cells as text, a tuple for each optimizer in the order of `COLUMNS`."""
    return [_make_row(summary) for summary in summarize(result)]


def make_table(result: CompareResult) -> Table:
    """The table for a terminal, the lowest final training loss in bold."""
    summaries = summarize(result)
    losses = {s.name: s.final_train_loss.mean for s in summaries if s.final_train_loss}
    winner = min(losses, key=losses.__getitem__) if losses else None
    task, config = result.task, result.config
    table = Table(
        title=f"{task.name} on {task.dataset}, {config.steps} steps",
        caption=f"learning rate with the {SELECTION}; mean ± standard deviation over {config.seeds} seed(s)",
        box=box.SIMPLE_HEAD,
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "optimizer" else "right", overflow="fold")
    for summary in summaries:
        table.add_row(*_make_row(summary), style="bold" if summary.name == winner else "")
    return table


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
