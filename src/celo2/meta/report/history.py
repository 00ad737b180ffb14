"""Reads a run's history from its folder, even while it is being written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from celo2._utils.files import read_object
from celo2.meta.probe.log import best_of, load_probes
from celo2.meta.run.metrics import METRICS_FILE, load_metrics

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunHistory:
    """The history of one run.

    Attributes:
        name: Label of the run, unique in a report.
        folder: Folder of the run.
        recipe: Options of the recipe; empty if they cannot be read.
        records: Record of each iteration, oldest first.
        probes: Record of each probe, oldest first.
        faults: Defects of the files, as sentences; damaged lines are left out.
    """

    name: str
    folder: Path
    recipe: Record
    records: Sequence[Record]
    probes: Sequence[Record]
    faults: Sequence[str] = ()

    @cached_property
    def steps(self) -> np.ndarray:
        """The numbers of the iterations, `(N,)`."""
        return np.asarray([record["step"] for record in self.records], float)

    def column(self, name: str) -> np.ndarray:
        """Returns a metric at each iteration, `(N,)`; NaN if missing."""
        return _as_numbers(record.get(name) for record in self.records)

    @cached_property
    def task_losses(self) -> dict[str, np.ndarray]:
        """Returns the meta-losses `(N,)` of each task by name."""
        found = [record.get("loss_per_task", {}) for record in self.records]
        names = dict.fromkeys(name for losses in found for name in losses)
        return {name: _as_numbers(losses.get(name) for losses in found) for name in names}

    @cached_property
    def probe_tasks(self) -> tuple[str, ...]:
        """The names of the probed tasks."""
        return tuple(dict.fromkeys(name for probe in self.probes for name in probe["tasks"]))

    @property
    def probe_steps(self) -> np.ndarray:
        """The iterations that were probed, `(P,)`."""
        return np.asarray([probe["step"] for probe in self.probes], float)

    @property
    def probe_scores(self) -> np.ndarray:
        """The score of each probe, `(P,)`; NaN if a task diverged."""
        return _as_numbers(probe["score"] for probe in self.probes)

    def probe_ratios(self, task: str) -> np.ndarray:
        """Returns a probed task's loss relative to the starting weights', `(P,)`; NaN if either diverged."""
        losses = _as_numbers(probe["tasks"].get(task, {}).get("loss") for probe in self.probes)
        return losses / losses[0] if len(losses) else losses

    @property
    def best_probe(self) -> Record | None:
        """The probe with the lowest score."""
        return best_of(self.probes)

    def meta_loss_at(self, steps: np.ndarray, window: int) -> np.ndarray:
        """Averages the meta-loss of the `window` iterations before each step; NaN before the first."""
        losses = self.column("meta_loss")
        return np.asarray(
            [_mean(losses[(self.steps > step - window) & (self.steps <= step)]) for step in steps]
        )


def is_run(folder: Path) -> bool:
    """Returns whether a folder holds a meta-training run."""
    return (folder / METRICS_FILE).is_file()


def load_history(folder: Path, name: str) -> RunHistory:
    """Reads a run's folder; damaged parts are left out and described in `faults`.

    Raises:
        ValueError: No iteration has been written yet.
    """
    records, faults = load_metrics(folder)
    if not records:
        raise ValueError(
            f"{folder / METRICS_FILE} has no iteration yet; wait for the first, or name another run."
        )
    probes = load_probes(folder)
    recipe: Record = {}
    try:
        recipe = read_object(folder / "config.json")
    except (OSError, ValueError) as error:
        faults.append(f"the recipe cannot be read: {error}")
    return RunHistory(name, folder, recipe, records, probes.records, [*faults, *probes.faults])


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Computes the mean of the `window` values up to each one, ignoring NaN; NaN if all are NaN."""
    finite = np.isfinite(values)
    totals = np.cumsum(np.concatenate([[0.0], np.where(finite, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], finite]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    with np.errstate(invalid="ignore"):
        return (totals[last] - totals[first]) / (counts[last] - counts[first])


def _as_numbers(values: Any) -> np.ndarray:
    return np.asarray([np.nan if value is None else value for value in values], float)


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
