"""Wraps the optimizers of the zoo as Optax transforms: flattens trees, checks arguments, handles dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from optax._src.base import (
    NO_PARAMS_MSG,  # Optax has no public name for its own message
)

from celo2.jax.accumulators import Accumulators, Leaf
from celo2.jax.dimensions import make_axes
from celo2.jax.state import (
    ScaleByCelo2State,
    init_state,
    leaves_to_state,
    make_layouts,
    state_to_leaves,
)
from celo2.zoo import adafac_mlp, celo, celo_adam, nn_adam, rnn_mlp, velo
from celo2.zoo.lstm import Theta
from celo2.zoo.rule import Rule, Step
from celo2.zoo.specs import MemberConfig, RnnMlp

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "celo": celo.RULE,
        "celo_adam": celo_adam.RULE,
        "adafac_mlp": adafac_mlp.RULE,
        "rnn_mlp": rnn_mlp.RULE,
        "nn_adam": nn_adam.RULE,
        "velo": velo.RULE,
    }
)


class ZooState(NamedTuple):
    """State of an optimizer of the zoo.

    Attributes:
        accumulators: The step count, and trees shaped like the parameters.
        memory: The remaining state: LSTM rows in the order of the tree's leaves, and means of the loss.
    """

    accumulators: ScaleByCelo2State
    memory: Any


def make_transform(
    theta: Theta, config: MemberConfig, num_steps: ArrayLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Builds an optimizer's transform with these meta-parameters.

    Its updates are final: they include the learned step size and the sign, and need no learning rate.

    Args:
        theta: Arrays by name, as in `config.weight_shapes()`; may be traced.
        config: The optimizer's options; their type selects the optimizer.
        num_steps: The length of the run, ≥ 1; may be traced. More steps may be taken.

    Raises:
        ValueError: The optimizer needs `num_steps` and it is missing, or it is below 1. In `update`: the
            loss or the parameters are missing, the loss is not a scalar, or `is_valid` is given to an
            optimizer other than RNN-MLP.
        TypeError: In `update`: `is_valid` is not a Python bool.
    """
    num_steps = _check_num_steps(config, num_steps)
    rule = RULES[config.kind]

    def init(params: optax.Params) -> ZooState:
        leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.size]
        accumulators = init_state(params, make_layouts(params, None), rule.decays)
        memory = rule.init(theta, config, len(leaves), _common_dtype(leaves))
        return ZooState(accumulators, jax.tree.map(jnp.copy, memory))  # a donated state must not take theta

    def update(
        updates: optax.Updates,
        state: ZooState,
        params: optax.Params | None = None,
        *,
        value: ArrayLike | None = None,
        is_valid: bool = False,
        **extra: Any,
    ) -> tuple[optax.Updates, ZooState]:
        del extra
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        _check_loss(config, value)
        _check_is_valid(config, is_valid)
        grads, treedef = jax.tree.flatten(updates)
        old = state_to_leaves(state.accumulators, treedef)
        filled = [index for index, grad in enumerate(grads) if grad.size]
        leaves = list(map(Leaf, grads, treedef.flatten_up_to(params), old))
        changes, new, memory = list(grads), list(old), state.memory
        if filled:
            step = _as_step([leaves[i] for i in filled], state, value, num_steps, is_valid)
            outcome = rule.update(theta, config, step)
            memory = jax.tree.map(lambda a, b: a.astype(b.dtype), outcome.memory, state.memory)
            for i, change, accumulators in zip(filled, outcome.changes, outcome.accumulators, strict=True):
                changes[i] = change.astype(grads[i].dtype)
                new[i] = jax.tree.map(lambda a, b: a.astype(b.dtype), accumulators, old[i])
        count = jnp.asarray(optax.safe_increment(state.accumulators.count))
        after = leaves_to_state(new, count, treedef, state.accumulators)
        return treedef.unflatten(changes), ZooState(after, memory)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _check_num_steps(config: MemberConfig, num_steps: ArrayLike | None) -> ArrayLike:
    if num_steps is None:
        if "num_steps" in config.needs:
            raise ValueError(f"{config.kind} needs the length of the run: num_steps=1000, say.")
        return 1
    if not isinstance(num_steps, Array) and not num_steps >= 1:  # type: ignore[operator]
        raise ValueError(f"num_steps must be at least 1, got {num_steps!r}.")
    return num_steps


def _check_loss(config: MemberConfig, value: ArrayLike | None) -> None:
    if "loss" in config.needs and value is None:
        raise ValueError(
            f"{config.kind} needs the loss at the parameters of this gradient: "
            "update(grads, state, params, value=loss)."
        )
    if value is not None and jnp.shape(value) != ():
        raise ValueError(
            f"value must be the loss as a scalar, got shape {jnp.shape(value)}; take its mean, say."
        )


def _check_is_valid(config: MemberConfig, is_valid: bool) -> None:
    if not isinstance(is_valid, bool):
        raise TypeError(
            f"is_valid chooses the program and must be True or False itself, got {type(is_valid).__name__}; "
            "under jax.jit make it a static argument."
        )
    if is_valid and not isinstance(config, RnnMlp):
        raise ValueError(f"{config.kind} takes no validation losses (is_valid=True); only rnn_mlp does.")


def _common_dtype(leaves: list[Array]) -> jnp.dtype:
    """Returns the dtype of a step: float32, or a wider one if an array has it."""
    return np.result_type(np.float32, *(leaf.dtype for leaf in leaves))


def _as_step(
    leaves: list[Leaf], state: ZooState, value: ArrayLike | None, num_steps: ArrayLike, is_valid: bool
) -> Step:
    dtype = _common_dtype([leaf.param for leaf in leaves])

    def cast(leaf: Leaf) -> Leaf:
        return Leaf(
            leaf.grad.astype(dtype),
            leaf.param.astype(dtype),
            Accumulators(*jax.tree.map(lambda array: array.astype(dtype), leaf.accumulators)),
        )

    return Step(
        leaves=list(map(cast, leaves)),
        axes=[make_axes(leaf.param.shape) for leaf in leaves],
        memory=state.memory,
        count=state.accumulators.count,
        loss=jnp.asarray(0.0 if value is None else value).astype(dtype),
        num_steps=num_steps,
        is_valid=is_valid,
    )
