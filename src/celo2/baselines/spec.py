"""Specification of an optimizer in the registry, and helpers for learning rates and weight decay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import optax

MakeOptimizer = Callable[[optax.ScalarOrSchedule, float], optax.GradientTransformation]
"""Type of `(learning rate or schedule, weight decay) → transform`."""

EvalParams = Callable[[Any, Any], Any]
"""Type of `(optimizer state, trained parameters) → parameters to evaluate`."""


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """A tunable optimizer.

    Attributes:
        name: The name on the command line and in reports.
        description: One line for reports: what it is, and its fixed settings.
        make: Builds the Optax transform, `(learning rate or schedule, weight decay) → transform`.
        learning_rate_range: The lowest and highest learning rates of the default grid: around the
            published default, and wide enough for the tasks of this package.
        reference: The paper.
        origin: The code it comes from, such as `optax.lion`.
        schedule: The learning-rate schedule, by its name in `celo2.training.protocol.SCHEDULES`.
        eval_params: Computes the parameters to evaluate from the optimizer's state and the trained
            parameters; None: the trained parameters themselves.
        sets_own_rate: Whether it chooses its own step sizes: there is one run per seed, at "rate" 1,
            and weight decay, which scales with a learning rate, does not apply.
        weights: The checksum of a learned optimizer's weights (`celo2.weights.checkpoint.compute_checksum`),
            filled in by `find_optimizer`; "" for a hand-designed one.
    """

    name: str
    description: str
    make: MakeOptimizer
    learning_rate_range: tuple[float, float]
    reference: str = ""
    origin: str = ""
    schedule: Literal["cosine", "constant"] = "cosine"
    eval_params: EvalParams | None = None
    sets_own_rate: bool = False
    weights: str = ""

    def learning_rates(self, count: int) -> tuple[float, ...]:
        """Returns the default grid: `count` ≥ 1 values, log-uniform over the range; one value is its middle.

        The grid is (1,) for an optimizer that sets its own rate.
        """
        if count < 1:
            raise ValueError(f"a grid needs at least one learning rate, got {count}.")
        if self.sets_own_rate:
            return (1.0,)
        low, high = self.learning_rate_range
        exact = np.geomspace(low, high, count) if count > 1 else [(low * high) ** 0.5]
        return tuple(float(f"{value:.3g}") for value in exact)


def decoupled(
    direction: optax.GradientTransformation, learning_rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    """Applies `params -= learning_rate · (direction + weight_decay · params)`, as in AdamW."""
    return optax.chain(
        direction,
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def scaled(learning_rate: optax.ScalarOrSchedule, factor: float) -> optax.ScalarOrSchedule:
    """Returns a learning rate or schedule times a factor."""
    if callable(learning_rate):
        return lambda count: factor * learning_rate(count)
    return factor * learning_rate
