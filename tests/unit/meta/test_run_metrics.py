"""What is kept of a run: its recipe, and means of its metrics."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from celo2.meta.config import MetaConfig
from helpers.run_examples import TASKS, make_record, write_run

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "run_metrics.py"


def test_a_run_is_kept_as_its_recipe_and_means_of_ten(tmp_path: Path, monkeypatch) -> None:
    run, name = write_run(tmp_path / "run", steps=25), tmp_path / "kept" / "name"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(run), str(name)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert MetaConfig.load(name.with_suffix(".json")) == MetaConfig.load(run / "config.json")
    rows = list(csv.DictReader(name.with_suffix(".csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["10", "20", "25"]
    last = [make_record(step) for step in range(21, 26)]
    for column, values in (
        ("meta_loss", [record["meta_loss"] for record in last]),
        (TASKS[0], [record["loss_per_task"][TASKS[0]] for record in last]),
        ("signal_to_noise", [record["signal_to_noise"] for record in last]),
    ):
        np.testing.assert_allclose(float(rows[-1][column]), np.mean(values), rtol=1e-5)
    assert "reverse_share" not in rows[-1]  # of recipes with reverse mode only


def test_a_measure_of_a_later_version_has_a_column(tmp_path: Path) -> None:
    run, name = write_run(tmp_path / "run", steps=20), tmp_path / "name"
    records = [make_record(step) for step in range(1, 21)]
    for record in records[10:]:
        record["resumed"] = 3
    SimpleNamespace(**runpy.run_path(str(SCRIPT))).store_run(run, records, name)
    rows = list(csv.DictReader(name.with_suffix(".csv").read_text().splitlines()))
    assert [row["resumed"] for row in rows] == ["", "3"]
