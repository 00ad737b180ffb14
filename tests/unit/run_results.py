"""Runs made up for the tests of the store, without any training."""

from __future__ import annotations

from typing import Any

import numpy as np

from celo2.evaluate.runs import RunResult, RunSpec, TaskFacts

__all__ = ["make_run"]

ENVIRONMENT = {"celo2": "0.1.0", "commit": "abc", "devices": "2 × cpu"}


def make_run(*, accuracy: bool = True, **spec: Any) -> RunResult:
    """A run of 20 steps whose numbers are those of its seed."""
    wanted = RunSpec(**{"task": "a-task", "optimizer": "adamw", "learning_rate": 1e-3, "steps": 20, **spec})
    rng = np.random.default_rng(wanted.seed)
    return RunResult(
        spec=wanted,
        facts=TaskFacts(
            name="a-task",
            dataset="a-set",
            origin="made up",
            train_examples=90,
            valid_examples=10,
            batch_size=4,
            num_parameters=1000,
            initial_loss=None if wanted.task == "a-game" else 2.0,
        ),
        train_steps=np.arange(1, 21),
        train_loss=rng.normal(size=20).astype(np.float32),
        valid_steps=np.asarray([10, 20]),
        valid_loss=rng.normal(size=2).astype(np.float32),
        valid_accuracy=rng.uniform(size=2).astype(np.float32) if accuracy else None,
        diverged_at=-1,
        seconds_per_step=1e-3,
        timing="alone",
        state_bytes=8000,
        weights="",
        created="2026-01-01T00:00:00+00:00",
        environment=ENVIRONMENT,
    )
