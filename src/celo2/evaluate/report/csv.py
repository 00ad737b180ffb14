"""CSV export of a suite's report, in full precision; objectives are as minimised (returns are negated)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from celo2.evaluate.analysis.cells import Setting
from celo2.evaluate.analysis.standings import Standings
from celo2.evaluate.analysis.stats import Interval, lowest
from celo2.evaluate.analysis.summary import OptimizerRow, TaskRow
from celo2.evaluate.suite.results import RunResult
from celo2.report.kit import MeanStd

_PAIRS = {
    **dict.fromkeys(
        ("final_valid_loss", "final_train_loss", "best_train_loss", "best_valid_loss", "accuracy"),
        MeanStd._fields,
    ),
    **dict.fromkeys(("over_seeds", "over_tasks"), Interval._fields),
}


def as_csv(records: Iterable[dict[str, Any]]) -> str:
    """Formats records with equal keys as CSV with a header line; None is left empty."""
    found = list(records)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def table_records(rows: Iterable[OptimizerRow | TaskRow]) -> Iterator[dict[str, Any]]:
    """Yields records for summary.csv and tasks.csv; mean and deviation, or interval ends, get two columns."""
    for row in rows:
        record: dict[str, Any] = {}
        for name, value in row._asdict().items():
            if name in _PAIRS:
                ends = [f"{name}_{end}" for end in _PAIRS[name]]
                record |= zip(ends, value or (None, None), strict=True)
            else:
                record[name] = value
        yield record


def run_records(standings: Standings) -> Iterator[dict[str, Any]]:
    """Yields records for runs.csv: every run, and whether it has the best setting."""
    for task in standings.tasks:
        for cell in task.cells.values():
            for run in cell.runs:
                yield {**_run_record(run), "best_setting": Setting.of(run.spec) == cell.best}


def _run_record(run: RunResult) -> dict[str, Any]:
    spec, accuracy = run.spec, run.valid_accuracy
    return {
        "task": spec.task,
        "dataset": run.facts.dataset,
        "optimizer": spec.optimizer,
        "learning_rate": spec.learning_rate,
        "weight_decay": spec.weight_decay,
        "schedule": spec.schedule,
        "seed": spec.seed,
        "steps": spec.steps,
        "unit": run.facts.unit,
        "final_train_loss": run.final_train_loss,
        "best_train_loss": run.best_train_loss,
        "final_valid_loss": run.final_valid_loss,
        "best_valid_loss": float(lowest(run.valid_loss)),
        "final_valid_accuracy": None if accuracy is None else float(accuracy[-1]),
        "diverged_at": run.diverged_at,
        "seconds_per_step": run.seconds_per_step,
        "timing": run.timing,
        "state_bytes": run.state_bytes,
        "weights": run.weights,
        "created": run.created,
        "commit": run.environment.get("commit"),
        "processor": run.environment.get("processor"),
    }
