"""Direction loss: measures how far the rule's steps deviate in direction from those of an expert.

    d = 1 - mean over arrays of ⟨u, v⟩ / (‖u‖ ‖v‖)

u is the rule's step of an array; v is that of the expert, a hand-designed optimizer, for the same gradients
and parameters. The expert has its own state, and the run follows only the rule. Added to the task's loss
with a small constant weight, d acts as a trust region: it keeps the rule from drifting away from good steps.

Source: ELO (arXiv 2607.06772), where this is one of two imitation losses, and runs follow a mixture of both
steps for most of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.baselines import LEARNED, OPTIMIZERS, OptimizerSpec
from celo2.zoo.specs import PRESETS

MAX_DIRECTION_LOSS = 2.0  # of opposite steps; also used for non-finite steps


class DirectionLossState(NamedTuple):
    """State of `with_direction_loss`.

    Attributes:
        rule: The rule's state.
        expert: The expert's state for each of the compared arrays.
        loss: Direction loss of the last step, `()` float32.
    """

    rule: Any
    expert: tuple[Any, ...]
    loss: Array


def find_expert(name: str) -> OptimizerSpec:
    """Finds a hand-designed optimizer whose steps are meaningful along another optimizer's run.

    Raises:
        ValueError: There is none of this name (the message suggests the nearest); it is a learned optimizer;
            or it evaluates parameters other than those it trains.
    """
    if name.partition(":")[0] in (*LEARNED, *PRESETS):
        raise ValueError(
            f"expert: {name!r} is a learned optimizer, whose weights a recipe does not hold; name a "
            "hand-designed one, such as muon."
        )
    spec = OPTIMIZERS.find(name)
    if spec.eval_params is not None:
        raise ValueError(
            f"expert: the steps of {name!r} are made for parameters that it averages itself, which another "
            "optimizer's run does not have; name another one, such as muon."
        )
    return spec


def make_expert(name: str) -> optax.GradientTransformationExtraArgs:
    """Makes a registered optimizer at the constant rate 1, without weight decay.

    The rate does not matter for optimizers whose steps are proportional to it; Fromage's are not. SOAP and
    Shampoo factorize matrices at every step here, since the runs of a call are at different steps.

    Raises:
        ValueError: As in `find_expert`.
    """
    return optax.with_extra_args_support(find_expert(name).make(1.0, 0.0))


def with_direction_loss(
    rule: optax.GradientTransformationExtraArgs,
    expert: optax.GradientTransformationExtraArgs,
    is_compared: Callable[[Array], bool],
) -> optax.GradientTransformationExtraArgs:
    """Wraps a rule to measure the direction loss of each step; the steps remain the rule's.

    The expert gets each array separately, without its name. A Muon that leaves output heads and embeddings
    to AdamW therefore treats them as matrices, as the rule does in meta-training.

    Args:
        rule: The rule.
        expert: The optimizer that provides the wanted directions.
        is_compared: Whether arrays of a given rank count.

    Returns:
        A transform with the state `DirectionLossState`, whose `update` needs the parameters.
    """

    def compared(tree: Any) -> list[Array]:
        return [array for array in jax.tree.leaves(tree) if is_compared(array)]

    def init(params: Any) -> DirectionLossState:
        states = tuple(expert.init(array) for array in compared(params))
        return DirectionLossState(rule.init(params), states, jnp.zeros((), jnp.float32))

    def update(
        updates: Any, state: DirectionLossState, params: Any = None, **extra: Any
    ) -> tuple[Any, DirectionLossState]:
        steps, rule_state = rule.update(updates, state.rule, params, **extra)
        # Only the rule's steps are differentiated: the expert is a constant in reverse mode.
        inputs = jax.lax.stop_gradient((compared(updates), state.expert, compared(params)))
        arrays = zip(*inputs, strict=True)
        made: list[Any] = [expert.update(grad, old, param, **extra) for grad, old, param in arrays]
        loss = compute_direction_loss(compared(steps), [step for step, _ in made])
        return steps, DirectionLossState(rule_state, tuple(new for _, new in made), loss)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def compute_direction_loss(steps: Sequence[Array], wanted: Sequence[Array]) -> Array:
    """Computes one minus the mean cosine of pairs of arrays, `()` float32 in [0, 2].

    A zero step has cosine 0 with any other; if a step is not finite, the loss is 2.

    Args:
        steps: Steps of each array, of any size; only their directions matter.
        wanted: The expert's steps, of the same shapes.
    """
    cosines = [jnp.sum(_normalize(one) * _normalize(two)) for one, two in zip(steps, wanted, strict=True)]
    mean = sum(cosines, start=jnp.zeros((), jnp.float32)) / max(len(cosines), 1)
    loss = 1.0 - jnp.clip(mean, -1.0, 1.0)
    return jnp.where(jnp.isfinite(loss), loss, MAX_DIRECTION_LOSS)


def _normalize(step: Array) -> Array:
    """Scales an array to norm 1, first dividing by the largest element so that squares stay in range."""
    step = step.astype(jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(step)))  # the result does not depend on it
    step = step / jnp.where(largest == 0, 1.0, largest)
    square = jnp.sum(jnp.square(step))
    return step / jnp.sqrt(jnp.where(square == 0, 1.0, square))  # zeros stay zero, also in derivatives
