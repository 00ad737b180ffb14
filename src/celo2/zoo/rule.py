"""What every optimizer of the zoo is made of: a start, and one step of all tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from celo2.jax.accumulators import Accumulators, Leaf
from celo2.jax.dimensions import Axes
from celo2.zoo.lstm import Theta


class Decays(NamedTuple):
    """Decays of the accumulators, as `celo2.jax.accumulators` wants them."""

    initial_momentum_decays: tuple[Any, ...] = ()
    initial_rms_decays: tuple[Any, ...] = ()
    initial_adafactor_decays: tuple[Any, ...] = ()


STANDARD = Decays((0.9, 0.99, 0.999), (0.999,), (0.9, 0.99, 0.999))  # of Celo, VeLO and AdaFac-MLP's start
NO_DECAYS = Decays()


class Step(NamedTuple):
    """What an optimizer is given; all arrays have one dtype, float32 unless the parameters have more.

    Attributes:
        leaves: Gradient, parameter and accumulators of each tensor that has elements.
        axes: The axes of each that are factored, None for rank < 2.
        memory: What else it remembers.
        count: Steps before this one, int32.
        loss: At the parameters where the gradients were taken, a scalar; None if not given.
        num_steps: Length of the run; None if not given.
        is_valid: The loss is one of validation and the gradients mean nothing (RNN-MLP).
    """

    leaves: list[Leaf]
    axes: list[Axes | None]
    memory: Any
    count: Array  # type: ignore[assignment]  # tuple.count is not meant
    loss: Array
    num_steps: ArrayLike
    is_valid: bool


class Outcome(NamedTuple):
    """What a step gives: the change of each tensor, its accumulators, and what else is remembered."""

    changes: list[Array]
    accumulators: list[Accumulators]
    memory: Any


class Rule(NamedTuple):
    """An optimizer.

    Attributes:
        decays: Of its accumulators; where they are learned, only their number counts.
        init: `(theta, config, tensors, dtype) → memory`.
        update: `(theta, config, step) → outcome`.
    """

    decays: Decays
    init: Callable[[Theta, Any, int, jnp.dtype], Any]
    update: Callable[[Theta, Any, Step], Outcome]
