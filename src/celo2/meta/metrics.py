"""The lines that a run writes about its outer iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celo2._files import read_records

__all__ = ["METRICS_FILE", "read_metrics"]

METRICS_FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's folder, the oldest first, without lines that are torn or have no step.

    Runs from before there were families name image sets, which perceptrons learned.
    """
    records = [record for record in read_records(folder / METRICS_FILE) if "step" in record]
    for record in records:
        if "loss_per_set" in record:
            losses = record.pop("loss_per_set")
            record["loss_per_task"] = {f"mlp/{name}": loss for name, loss in losses.items()}
    return records
