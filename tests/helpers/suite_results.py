"""Runs of a suite made up for tests, without any training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from celo2.evaluate.suite.results import RunResult, RunSpec, TaskFacts
from helpers.run_results import make_facts, make_result

IMAGES = make_facts(
    name="conv",
    dataset="images-sample",
    stands_in_for="Images",
    train_examples=900,
    valid_examples=100,
    batch_size=16,
    initial_loss=2.3,
    unit="nats",
)
TEXT = make_facts(
    name="lm",
    dataset="sentences",
    origin="made up, too",
    train_examples=500,
    valid_examples=50,
    num_parameters=2000,
    initial_loss=10.0,
    tokens_per_batch=256,
    unit="nats",
)
AGENT = make_facts(
    name="catch",
    dataset="catch",
    origin="a game",
    train_examples=0,
    valid_examples=0,
    batch_size=64,
    num_parameters=300,
    initial_loss=None,
    unit="return",
)
TASKS = {"conv@tiny": (IMAGES, 2.3, 0.4), "lm@tiny": (TEXT, 10.0, 5.0), "catch@tiny": (AGENT, -1.0, -40.0)}
OPTIMIZERS = {"celo2": 0.9, "celo2-base": 1.1, "adamw": 1.0, "muon": 0.95}  # final loss, as multiples
RATES = (0.001, 0.01, 0.1)
POINTS = 50
VALID = 1.25  # ratio of validation to training losses


def make_run(
    final: float,
    *,
    task: str = "conv@tiny",
    optimizer: str = "adamw",
    rate: float = 0.01,
    decay: float = 0.0,
    seed: int = 0,
    start: float = 2.3,
    steps: int = 1000,
    diverged_at: int = -1,
    facts: TaskFacts = IMAGES,
    **changes: Any,
) -> RunResult:
    """A run whose loss goes straight from `start` to `final`, at 50 points; validation: `VALID` times it."""
    train_steps = np.linspace(steps // POINTS, steps, POINTS).astype(int)
    losses = start + (final - start) * train_steps / steps
    if diverged_at >= 0:
        losses[train_steps >= diverged_at] = math.nan
    valid = np.arange(POINTS // 5 - 1, POINTS, POINTS // 5)
    spec = RunSpec(
        task=task, optimizer=optimizer, learning_rate=rate, weight_decay=decay, seed=seed, steps=steps
    )
    learned = optimizer.startswith("celo2")
    values: dict[str, Any] = {
        "train_steps": train_steps,
        "train_loss": losses,
        "valid_steps": train_steps[valid],
        "valid_loss": VALID * losses[valid],
        "valid_accuracy": np.linspace(0.1, 0.8, len(valid)) if facts is IMAGES else None,
        "diverged_at": diverged_at,
        "seconds_per_step": 0.002 if learned else 0.001,
        "weights": "5eed" * 16 if learned else "",
    }
    return make_result(spec, facts, **{**values, **changes})


def make_suite() -> list[RunResult]:
    """3 tasks × 4 optimizers × 3 rates × 2 seeds; muon's second seed diverges on conv@tiny at rate 0.1."""
    runs = []
    for task, (facts, start, floor) in TASKS.items():
        for optimizer, factor in OPTIMIZERS.items():
            for rate in RATES:
                for seed in (0, 1):
                    worse = 1 + 0.2 * math.log10(rate / 0.01) ** 2 + 0.02 * seed
                    final = floor * (factor * worse if facts.unit != "return" else 1 / (factor * worse))
                    lost = (task, optimizer, rate, seed) == ("conv@tiny", "muon", 0.1, 1)
                    options = {"rate": rate, "seed": seed, "start": start, "facts": facts}
                    at = 300 if lost else -1
                    runs.append(make_run(final, task=task, optimizer=optimizer, diverged_at=at, **options))
    return runs
