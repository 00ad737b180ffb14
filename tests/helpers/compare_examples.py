"""Comparisons made up for tests, without any training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from celo2.evaluate.comparison.compare import CompareConfig, CompareResult, Entry
from celo2.training.grid import RunGrid
from celo2.training.timing import StepCost
from helpers.run_results import CREATED, ENVIRONMENT, make_facts


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


def make_entry(name: str, final: Sequence[Sequence[float]], *, seconds: float = 1e-3) -> Entry:
    """One optimizer's part of a comparison, with these constant losses."""
    return Entry(name, f"{name} as described", make_fake_grid(final, accuracy=True), StepCost(seconds, 4000))


def make_comparison(*entries: Entry, seeds: int = 2) -> CompareResult:
    """A comparison of these optimizers on a task with 1,000 parameters."""
    return CompareResult(
        config=CompareConfig(
            task="quadratic", optimizers=tuple(e.name for e in entries), seeds=seeds, steps=100
        ),
        task=make_facts(dataset="a-data-set-sample"),
        entries=entries,
        unfinished=(),
        created=CREATED,
        seconds=12.5,
        environment=ENVIRONMENT,
    )
