"""Stores a meta-training run compactly: its recipe as NAME.json, its metrics as NAME.csv.

    python tools/run_metrics.py runs/seed-1 recipes/seeds/celo2-shipped-1

Each row of the table is the mean over the outer iterations since the previous row.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

from celo2.meta.config import MetaConfig
from celo2.meta.run.metrics import read_metrics

ROW = 10  # iterations per row, by default

_MEASURED = ("meta_loss", "grad_norm", "diverged", "resets", "skipped")
_WHERE_RECORDED = ("signal_to_noise", "resumed", "reverse_share")  # not in every version or recipe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("name", type=Path, help="path of the two files, without their endings")
    parser.add_argument("--row", type=int, default=ROW, help="iterations per row of the table")
    options = parser.parse_args()
    store_run(options.run, read_metrics(options.run), options.name, options.row)


def store_run(run: Path, records: list[dict[str, Any]], name: Path, row: int = ROW) -> None:
    """Writes the recipe in a run's folder, and the given metrics."""
    name.parent.mkdir(parents=True, exist_ok=True)
    recipe = MetaConfig.load(run / "config.json")  # refuses recipes that can no longer be repeated
    name.with_suffix(".json").write_text(recipe.to_json())
    with name.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        losses = list(records[0]["loss_per_task"])
        measures = [
            *_MEASURED,
            *(name for name in _WHERE_RECORDED if any(name in record for record in records)),
        ]
        table.writerow(["step", "seconds", *losses, *measures])
        for at in range(0, len(records), row):
            part = records[at : at + row]
            means = [_mean([record["loss_per_task"][loss] for record in part]) for loss in losses]
            means += [_mean([record.get(measured) for record in part]) for measured in measures]
            table.writerow([part[-1]["step"], part[-1]["seconds"], *means])


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.6g}" if known else ""


if __name__ == "__main__":
    main()
