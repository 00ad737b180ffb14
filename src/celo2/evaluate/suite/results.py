"""What one run of a suite is, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class RunSpec:
    """One run: all that was asked for. Data, weights, software and machine are facts of its result.

    Attributes:
        task: The task with its size (`celo2.tasks.registry`), "Conv_Cifar10_32x64x64@tiny" say.
        optimizer: Its name (`celo2.baselines`).
        learning_rate: The peak.
        weight_decay: Decoupled, multiplied by the learning rate.
        seed: Of the initial parameters and the batches.
        steps: Length of the run.
        schedule: Of the learning rate, by its name in `celo2.training.protocol.SCHEDULES`.

    Raises:
        ValueError: A number is out of its range.
    """

    task: str
    optimizer: str
    learning_rate: float
    weight_decay: float = 0.0
    seed: int = 0
    steps: int = 1000
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}.")
        if self.seed < 0 or self.steps < 2:
            raise ValueError(f"expected seed ≥ 0 and steps ≥ 2, got {self.seed} and {self.steps}.")

    @property
    def key(self) -> str:
        """A short name that no other run has: 16 hexadecimal digits of the SHA-256 of its settings."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What a report says about a task.

    Attributes:
        name: The task's.
        dataset: The set's name: a stand-in has its own.
        origin: Where the set came from, and its licence.
        stands_in_for: The published set whose place this one takes; "" where it is the set itself.
        train_examples: Of the training split; 0 where there is no set.
        valid_examples: Held out.
        batch_size: Examples in a training batch.
        num_parameters: Of the network.
        initial_loss: About what an untrained network scores; None: unbounded (a task judged by returns).
        tokens_per_batch: Of a language model, otherwise None.
        unit: Of the objective: "nats", "return", …; lower is better whatever it is, so a return is negated.
    """

    name: str
    dataset: str
    origin: str
    train_examples: int
    valid_examples: int
    batch_size: int
    num_parameters: int
    initial_loss: float | None
    tokens_per_batch: int | None = None
    unit: str = "loss"
    stands_in_for: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """A finished run.

    Attributes:
        spec: What was asked for.
        facts: About the task.
        train_steps: Steps taken at each point of the training curve, `(P,)`, ascending; the last is the
            run's length.
        train_loss: Mean objective over the 5 % of the steps before each point, `(P,)`; NaN from the
            point on where the run ceased to be finite.
        valid_steps: Steps taken before each validation, `(V,)`; the last is the run's length.
        valid_loss: Mean objective over the validation examples, `(V,)`.
        valid_accuracy: Share of right answers in [0, 1], `(V,)`; None where the task has none.
        diverged_at: The step at which the loss ceased to be finite, the run's length if it ended above an
            untrained network's loss, -1 if it did not diverge.
        seconds_per_step: Wall-clock, measured as `timing` says.
        timing: In words: "share of 15 runs side by side on 2 device(s)", say, or "alone".
        state_bytes: Size of the optimizer's state.
        weights: A learned optimizer's, as in `OptimizerSpec`: their checksum, "" of a hand-designed one.
        created: When it was finished, ISO 8601 with the offset from UTC.
        environment: Software and machine (`describe_environment`).
    """

    spec: RunSpec
    facts: TaskFacts
    train_steps: np.ndarray
    train_loss: np.ndarray
    valid_steps: np.ndarray
    valid_loss: np.ndarray
    valid_accuracy: np.ndarray | None
    diverged_at: int
    seconds_per_step: float
    timing: str
    state_bytes: int
    weights: str
    created: str
    environment: Mapping[str, Any]

    @property
    def diverged(self) -> bool:
        """Whether the run diverged."""
        return self.diverged_at >= 0

    @property
    def final_train_loss(self) -> float:
        """Mean objective over the last 5 % of the steps; NaN where it is not finite."""
        return float(self.train_loss[-1])

    @property
    def best_train_loss(self) -> float:
        """The lowest point of the training curve; infinite where there is none."""
        finite = self.train_loss[np.isfinite(self.train_loss)]
        return float(finite.min()) if finite.size else math.inf

    @property
    def final_valid_loss(self) -> float:
        """Validation loss after the last step."""
        return float(self.valid_loss[-1])
