"""Settings and results of the runs of a suite."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

RankBy = Literal["validation", "training"]  # the loss that optimizers are tuned and ranked by


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class RunSpec:
    """Settings of one run; its data, weights, software and machine are part of the result.

    Attributes:
        task: The task with its size (`celo2.tasks.registry`), such as "Conv_Cifar10_32x64x64@tiny".
        optimizer: The name of the optimizer (`celo2.baselines`).
        learning_rate: The peak learning rate.
        weight_decay: The decoupled weight decay, multiplied by the learning rate.
        seed: The seed of the initial parameters and the batches.
        steps: The length of the run.
        schedule: The learning-rate schedule, by its name in `celo2.training.protocol.SCHEDULES`.

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
        """A short unique name: 16 hexadecimal digits of the SHA-256 of the settings."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """Facts about a task, for reports.

    Attributes:
        name: The name of the task.
        dataset: The name of the data set; a stand-in has its own name.
        origin: The source and licence of the data set.
        stands_in_for: The published set that this one replaces; "" if it is the published set.
        train_examples: The number of training examples; 0 without a data set.
        valid_examples: The number of held-out examples.
        batch_size: The number of examples in a training batch.
        num_parameters: The number of parameters of the network.
        initial_loss: The approximate loss of an untrained network; None: unbounded (for returns).
        tokens_per_batch: The number of tokens in a batch of a language model; None for other tasks.
        unit: The unit of the objective: "nats", "return", …; lower is always better, so returns are negated.
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

    def rank_by(self, wanted: RankBy) -> RankBy:
        """Returns the loss to rank optimizers by: the training loss if the task has no validation data."""
        return wanted if self.valid_examples else "training"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """Result of a finished run.

    Attributes:
        spec: The settings of the run.
        facts: The facts about the task.
        train_steps: The number of steps at each point of the training curve, `(P,)`, ascending; the last is
            the run's length.
        train_loss: The mean objective over the 5 % of the steps before each point, `(P,)`; NaN from the
            point at which the run ceased to be finite.
        valid_steps: The number of steps before each validation, `(V,)`; the last is the run's length.
        valid_loss: The mean objective over the validation examples, `(V,)`.
        valid_accuracy: The share of correct answers in [0, 1], `(V,)`; None for tasks without accuracy.
        diverged_at: The step at which the loss ceased to be finite; the run's length if it ended above an
            untrained network's loss; -1 if it did not diverge.
        seconds_per_step: The wall-clock time of a step, measured as `timing` describes.
        timing: A description such as "share of 15 runs side by side on 2 device(s)" or "alone".
        state_bytes: The size of the optimizer's state.
        weights: The checksum of a learned optimizer's weights, as in `OptimizerSpec`; "" for a
            hand-designed one.
        created: The time at which the run finished, ISO 8601 with the UTC offset.
        environment: The software and machine (`describe_environment`).
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
        """The mean objective over the last 5 % of the steps; NaN if it is not finite."""
        return float(self.train_loss[-1])

    @property
    def best_train_loss(self) -> float:
        """The lowest finite point of the training curve; infinite if there is none."""
        finite = self.train_loss[np.isfinite(self.train_loss)]
        return float(finite.min()) if finite.size else math.inf

    @property
    def final_valid_loss(self) -> float:
        """The validation loss after the last step."""
        return float(self.valid_loss[-1])

    def final_loss(self, rank_by: RankBy) -> float:
        """Returns `final_valid_loss` or `final_train_loss`."""
        return self.final_valid_loss if rank_by == "validation" else self.final_train_loss
