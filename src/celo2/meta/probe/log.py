"""Logs a run's probes and selects the best checkpoint by their scores.

OUT/probe.json          settings of the probes
OUT/probes.jsonl        one line per probe, the starting weights' first
OUT/best.safetensors    a copy of the weights with the lowest score, which their provenance states
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from celo2._utils.files import read_lines, read_object, write_atomic
from celo2.meta.probe.measure import ProbeConfig, TaskRecord, compute_score, describe
from celo2.weights.checkpoint import load_checkpoint, save_weights

BEST_FILE, PROBES_FILE, SETTINGS_FILE = "best.safetensors", "probes.jsonl", "probe.json"

ProbeRecord = Mapping[str, Any]


class Measure(Protocol):
    """Interface of a measurement of weights; `Probe.measure` implements it."""

    def __call__(self, theta: Mapping[str, np.ndarray]) -> dict[str, TaskRecord]:
        """Maps weights to records by task."""
        ...


class ProbeLog:
    """Takes the probes of one run, records them and copies the best weights.

    A probe is due at step 0, the reference for all others, and at multiples of `every`. It reads the weights
    from the run's own file, so that the best can be copied at any time. The caller of `take` must have saved
    a checkpoint of that step, so that a resumed run neither misses a probe nor repeats one.

    Args:
        folder: Folder of the run.
        every: Outer iterations between probes; 0: never.
        config: Settings of the probes.
        measure: Measures weights.

    Attributes:
        every: Outer iterations between probes.
    """

    def __init__(self, folder: Path, every: int, config: ProbeConfig, measure: Measure) -> None:
        self.every = every
        self._folder, self._config = folder, config
        self._measure = measure
        self._records: list[ProbeRecord] = []

    def start(self, step: int) -> None:
        """Prepares a run that continues from `step`; drops later probes, since they are taken again.

        Raises:
            ValueError: The run was probed with other settings, or a file of its probes is damaged.
        """
        found = load_probes(self._folder)
        if found.faults:
            raise ValueError(
                f"{' '.join(found.faults)} The choice of the best weights depends on them: put back a copy, "
                "or remove these lines, and their probes are forgotten."
            )
        self._records = list(found.records)
        if self.every:
            self._check_settings()
        kept = [record for record in self._records if record["step"] <= step]
        if len(kept) < len(self._records):
            self._records = kept
            self._write()
        elif self._records:
            self._copy_best()  # the run may have been killed before it

    def is_due(self, step: int) -> bool:
        """Returns whether a probe is due at this step and has not been taken."""
        wanted = self.every > 0 and step % self.every == 0
        return wanted and all(record["step"] != step for record in self._records)

    def steps_to_next(self, step: int) -> int:
        """Returns the number of outer iterations until the next probe; very large without probes."""
        return self.every - step % self.every if self.every else sys.maxsize

    def take(self, step: int, weights: Path) -> ProbeRecord:
        """Probes the weights of a step and copies them if they are the best so far.

        Args:
            step: The outer iteration, for which a probe is due; step 0 must come first.
            weights: Path of the weight file.

        Returns:
            `step`, `score`, `seconds`, `weights` (the name of the file), and `tasks` (the records by name).
        """
        begin = time.monotonic()
        tasks = self._measure(load_checkpoint(weights).arrays)
        reference = next((record["tasks"] for record in self._records if record["step"] == 0), tasks)
        record = {
            "step": step,
            "score": compute_score(tasks, reference),
            "seconds": round(time.monotonic() - begin, 3),
            "weights": weights.name,
            "tasks": tasks,
        }
        self._records = sorted([*self._records, record], key=lambda record: record["step"])
        self._write()
        return record

    @property
    def best(self) -> ProbeRecord | None:
        """The probe with the lowest score, the earliest if tied; None if none has a score."""
        return best_of(self._records)

    def _write(self) -> None:
        """Writes the whole file, then the best weights; `start` repeats an interrupted copy."""
        text = "".join(json.dumps(record) + "\n" for record in self._records)
        write_atomic(self._folder / PROBES_FILE, text.encode())
        self._copy_best()

    def _copy_best(self) -> None:
        best, path = self.best, self._folder / BEST_FILE
        if best is None:
            path.unlink(missing_ok=True)
            return
        weights = load_checkpoint(self._folder / "weights" / best["weights"])
        settings = self._folder / SETTINGS_FILE  # self._config differs if a run continues without probes
        text = settings.read_text() if settings.exists() else self._config.to_json()
        facts = {
            "probe_score": f"{best['score']:.6f}",
            "probe_tasks": describe(best["tasks"]),
            "probe_settings": " ".join(text.split()),
            "chosen_from": f"{len(self._records)} probes",
        }
        save_weights(path, dataclasses.replace(weights, provenance={**weights.provenance, **facts}))

    def _check_settings(self) -> None:
        path = self._folder / SETTINGS_FILE
        given = json.loads(self._config.to_json())
        if not path.exists() or not self._records:
            write_atomic(path, self._config.to_json().encode())
            return
        saved = read_object(path)
        differing = [
            f"{name}: {saved.get(name)} before, {given[name]} now"
            for name in given
            if given[name] != saved.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self._folder} was probed with other settings ({'; '.join(differing)}), and their scores "
                f"cannot be compared; use the same, or remove its {PROBES_FILE} to begin anew."
            )


class Probes(NamedTuple):
    """The probes of a run, in order, and the defects of their file, as sentences."""

    records: list[dict[str, Any]]
    faults: list[str]


def load_probes(folder: Path) -> Probes:
    """Reads the probes in a run's folder, which may have none."""
    path = folder / PROBES_FILE
    lines = read_lines(path, _is_record)
    faults = [f"{path}: line {number} is not the record of a probe." for number in lines.odd]
    return Probes(lines.records, faults)


def _is_record(record: dict[str, Any]) -> bool:
    step, score, tasks = (record.get(name) for name in ("step", "score", "tasks"))
    weights = record.get("weights", "")
    return (
        isinstance(step, int)
        and step >= 0
        and isinstance(score, int | float | None)
        and isinstance(weights, str)
        and weights == Path(weights).name
        and isinstance(tasks, dict)
        and all(
            isinstance(task, dict) and {"loss", "spread", "rate"} <= task.keys() for task in tasks.values()
        )
    )


def best_of(records: Sequence[ProbeRecord]) -> ProbeRecord | None:
    """Returns the record with the lowest score, the first if tied; None if none has a score."""
    scored = [record for record in records if record["score"] is not None]
    return min(scored, key=lambda record: record["score"]) if scored else None


def as_point(record: ProbeRecord) -> dict[str, Any]:
    """Converts a probe to a record for loggers, with names such as probe/tiny-lm/loss."""
    tasks = {
        name: {key: task[key] for key in ("loss", "spread", "rate")} for name, task in record["tasks"].items()
    }
    return {"step": record["step"], "probe": {"score": record["score"], **tasks}}


def describe_probe(record: ProbeRecord) -> str:
    """Describes a probe on one line: its score in words and its tasks."""
    if record["score"] is None:
        verdict = "no score, a task diverged"
    else:
        change = 100 * math.expm1(record["score"])
        verdict = f"score {record['score']:+.4f}, losses {change:+.1f} % from the start"
    return f"probe at {record['step']}: {verdict}; {describe(record['tasks'])}; {record['seconds']:.1f} s"
