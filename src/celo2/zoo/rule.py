"""Common interface of the optimizers in the zoo: an initial state, and one step over all tensors."""

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
    """Decays of the accumulators, in the form for `celo2.jax.accumulators`."""

    initial_momentum_decays: tuple[Any, ...] = ()
    initial_rms_decays: tuple[Any, ...] = ()
    initial_adafactor_decays: tuple[Any, ...] = ()


# The decays of Celo and VeLO, and the initial ones of AdaFac-MLP.
STANDARD = Decays((0.9, 0.99, 0.999), (0.999,), (0.9, 0.99, 0.999))


class Step(NamedTuple):
    """Inputs of one step; all arrays have one dtype, float32 unless the parameters have more precision.

    Attributes:
        leaves: Gradient, parameter and accumulators of each non-empty tensor.
        axes: The factored axes of each tensor, None for rank < 2.
        memory: The optimizer's state besides the accumulators.
        count: The number of previous steps, int32.
        loss: The loss at the parameters of the gradients, a scalar; None if not given.
        num_steps: The length of the run; None if not given.
        is_valid: Whether the loss is a validation loss, and the gradients are ignored (RNN-MLP).
    """

    leaves: list[Leaf]
    axes: list[Axes | None]
    memory: Any
    count: Array  # type: ignore[assignment]  # tuple.count is not meant
    loss: Array
    num_steps: ArrayLike
    is_valid: bool


class Outcome(NamedTuple):
    """Result of a step: the update and the accumulators of each tensor, and the remaining state."""

    changes: list[Array]
    accumulators: list[Accumulators]
    memory: Any


class Rule(NamedTuple):
    """Learned optimizer as a pair of pure functions.

    Attributes:
        decays: The decays of its accumulators; if they are learned, only their number matters.
        init: Makes the initial state, `(theta, config, tensors, dtype) → memory`.
        update: Takes one step, `(theta, config, step) → outcome`.
    """

    decays: Decays
    init: Callable[[Theta, Any, int, jnp.dtype], Any]
    update: Callable[[Theta, Any, Step], Outcome]
