"""Folders of meta-training runs made up for tests, without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TASKS = ("mlp/digits", "mlp/<b>bold</b>")


def make_record(step: int, **changes: Any) -> dict[str, Any]:
    """One iteration's line; the meta-loss falls from 2, a skipped one comes every fiftieth."""
    loss = 1.0 + 1.0 / step
    return {
        "step": step,
        "seconds": 0.1 * step,
        "meta_loss": loss,
        "loss_per_task": {TASKS[0]: loss + 0.5, TASKS[1]: loss - 0.5},
        "grad_norm": None if step % 50 == 0 else 3.0 / step,
        "signal_to_noise": None if step % 50 == 0 else 0.1 / step,
        "diverged": 0.25,
        "resets": 2,
        "ended_runs": 4,
        "diverged_runs": 1,
        "skipped": int(step % 50 == 0),
        **changes,
    }


def make_probe(step: int, score: float | None, loss: float | None) -> dict[str, Any]:
    """One probe's line, of one task."""
    task = {"loss": loss, "spread": None, "rate": 0.003, "at_edge": False, "rates": [0.003], "losses": [loss]}
    return {
        "step": step,
        "score": score,
        "seconds": 12.5,
        "weights": f"celo2-{step:06d}.safetensors",
        "tasks": {"tiny-lm": {**task, "untrained": 5.5, "seconds": 12.0}},
    }


def write_run(
    folder: Path,
    *,
    steps: int = 100,
    probes: list[dict[str, Any]] | None = None,
    recipe: dict[str, Any] | None = None,
) -> Path:
    """A run's folder as far as a report reads it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(recipe or {"seed": 0, "datasets": ["digits"]}))
    records = [make_record(step) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if probes:
        (folder / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    return folder


PROBES = [make_probe(0, 0.0, 2.0), make_probe(50, -0.2231, 1.6), make_probe(100, None, None)]
