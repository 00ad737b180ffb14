"""Tasks and finished runs made up for tests, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from celo2.evaluate.suite.results import RunResult, RunSpec, TaskFacts
from celo2.training.grid import RunGrid

CREATED = "2026-01-02T03:04:05+00:00"
ENVIRONMENT = {"celo2": "0.0", "commit": "abc123", "processor": "a <processor>", "devices": "2 × cpu"}


def make_facts(**changes: Any) -> TaskFacts:
    """Of a task with 1,000 parameters."""
    values: dict[str, Any] = {
        "name": "a-task",
        "dataset": "a-set",
        "origin": "made up & <escaped>",
        "train_examples": 90,
        "valid_examples": 10,
        "batch_size": 4,
        "num_parameters": 1000,
        "initial_loss": 2.0,
    }
    return TaskFacts(**{**values, **changes})


def make_result(spec: RunSpec, facts: TaskFacts, **values: Any) -> RunResult:
    """A run without weights, on a machine of its own; `values` are its curves, and what else is to differ."""
    usual: dict[str, Any] = {
        "valid_accuracy": None,
        "diverged_at": -1,
        "seconds_per_step": 1e-3,
        "timing": "alone",
        "state_bytes": 8 * facts.num_parameters,
        "weights": "",
        "created": CREATED,
        "environment": ENVIRONMENT,
    }
    return RunResult(spec=spec, facts=facts, **{**usual, **values})


def make_random_run(*, accuracy: bool = True, **spec: Any) -> RunResult:
    """A run of 20 steps whose numbers are those of its seed."""
    wanted = RunSpec(**{"task": "a-task", "optimizer": "adamw", "learning_rate": 1e-3, "steps": 20, **spec})
    rng = np.random.default_rng(wanted.seed)
    return make_result(
        wanted,
        make_facts(initial_loss=None if wanted.task == "a-game" else 2.0),
        train_steps=np.arange(1, 21),
        train_loss=rng.normal(size=20).astype(np.float32),
        valid_steps=np.asarray([10, 20]),
        valid_loss=rng.normal(size=2).astype(np.float32),
        valid_accuracy=rng.uniform(size=2).astype(np.float32) if accuracy else None,
    )


def make_fake_grid(
    final: Sequence[Sequence[float]] | np.ndarray,
    *,
    steps: int = 100,
    learning_rates: Sequence[float] | None = None,
    accuracy: bool = False,
) -> RunGrid:
    """Runs whose losses are constant at these values, learning rates × seeds; an untrained network has 2."""
    losses = np.asarray(final, np.float32)
    rates = np.geomspace(1e-3, 1e-1, len(losses)) if learning_rates is None else np.asarray(learning_rates)
    return RunGrid(
        learning_rates=rates,
        seeds=np.arange(losses.shape[1]),
        train_loss=np.repeat(losses[..., None], steps, -1),
        valid_steps=np.array([steps // 2, steps]),
        valid_loss=np.repeat(losses[..., None], 2, -1),
        valid_accuracy=np.full((*losses.shape, 2), 0.5, np.float32) if accuracy else None,
        initial_loss=2.0,
    )
