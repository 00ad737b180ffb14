"""Reads `metrics.jsonl`, the log of a run's outer iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from celo2._utils.files import read_lines

METRICS_FILE = "metrics.jsonl"
SHOWN_LINES = 5  # maximum number of malformed lines that a message lists


class Metrics(NamedTuple):
    """The contents of a run's metrics file.

    Attributes:
        records: One record per iteration, in order.
        faults: Defects of the file, as sentences.
    """

    records: list[dict[str, Any]]
    faults: list[str]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads the records of a run's folder; see `load_metrics`."""
    return load_metrics(folder).records


def load_metrics(folder: Path) -> Metrics:
    """Reads the metrics in a run's folder; ignores a truncated last line, left by a killed run.

    Runs from before families were introduced name image sets; their task is `mlp/SET`.
    """
    path = folder / METRICS_FILE
    lines = read_lines(path, _is_record)
    by_step = {record["step"]: record for record in lines.records}
    faults = []
    if lines.odd:
        shown = ", ".join(map(str, lines.odd[:SHOWN_LINES])) + (" …" if lines.odd[SHOWN_LINES:] else "")
        faults.append(
            f"{path}: {len(lines.odd)} line(s) are no records of iterations and are left out: {shown}."
        )
    if len(by_step) < len(lines.records):
        faults.append(
            f"{path}: {len(lines.records) - len(by_step)} line(s) repeat an iteration, of which the last "
            "counts; two runs may have written into the folder."
        )
    records = [by_step[step] for step in sorted(by_step)]
    for record in records:
        if "loss_per_set" in record:
            losses = record.pop("loss_per_set")
            record["loss_per_task"] = {f"mlp/{name}": loss for name, loss in losses.items()}
    return Metrics(records, faults)


def _is_record(record: dict[str, Any]) -> bool:
    """Returns whether an object is an iteration's record: numbers where required, or null."""
    rest = dict(record)
    step, losses = rest.pop("step", None), rest.pop("loss_per_task", rest.pop("loss_per_set", {}))
    numbers = [*rest.values(), *losses.values()] if isinstance(losses, dict) else ["none"]
    return (
        isinstance(step, int)
        and step > 0
        and rest.get("skipped", 0) is not None
        and all(value is None or isinstance(value, int | float) for value in numbers)
    )
