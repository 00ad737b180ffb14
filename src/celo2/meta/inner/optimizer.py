"""The inner optimizer: the rule, or a predecessor, with the weights that are being learned."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from celo2.jax.transform import ADAMW_BETAS, scale_by_celo2
from celo2.meta.config import MetaConfig
from celo2.meta.pes import Theta
from celo2.zoo.transform import make_transform

ADAMW_EPS = 1e-8  # under the root of the second moment in the meta-training's AdamW branch


def make_inner_optimizer(
    theta: Theta, config: MetaConfig, num_steps: ArrayLike = 1
) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer of the inner runs at the peak learning rate, without weight decay.

    Celo2-base: the rule on every parameter. Celo2: the rule on matrices; vectors get Adam's
    direction without bias correction at `adamw_lr_scale` times the rate, as in the published
    meta-training. A predecessor is its public transform, unchanged.

    Args:
        theta: The weights, traced.
        config: The recipe.
        num_steps: Length of the run, which predecessors read.

    Returns:
        A transform whose `update` may be given the loss as `value=`.
    """
    if config.member is not None:
        return make_transform(theta, config.member, num_steps)
    return optax.with_extra_args_support(_make_celo2(theta, config))


def _make_celo2(theta: Theta, config: MetaConfig) -> optax.GradientTransformation:
    rule = with_longer_axis_last(scale_by_celo2(theta, **dataclasses.asdict(config.rule)))
    rate = config.inner_learning_rate
    if config.variant == "celo2-base":
        return optax.chain(rule, optax.scale(-rate))
    return optax.partition(
        {
            "celo2": optax.chain(rule, optax.scale(-rate)),
            "adamw": optax.chain(_scale_by_uncorrected_adam(), optax.scale(-rate * config.adamw_lr_scale)),
        },
        lambda params: jax.tree.map(lambda leaf: "celo2" if leaf.ndim >= 2 else "adamw", params),
    )


def with_longer_axis_last(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps a rule so that it sees tall matrices transposed, and keeps its state in that layout.

    The rule does not distinguish the two axes of a matrix unless they are equal, and a processor computes
    many short rows several times slower than a few long ones.
    """

    def turn(tree: Any) -> Any:
        return jax.tree.map(_turn, tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # The barriers keep the transposition out of the rule's loops, which would read with strides.
        turned = jax.lax.optimization_barrier((turn(updates), turn(params)))
        steps, state = rule.update(turned[0], state, turned[1])
        return jax.tree.map(_turn_back, jax.lax.optimization_barrier(steps), updates), state

    return optax.GradientTransformation(lambda params: rule.init(turn(params)), update)


def _turn(array: Array) -> Array:
    return array.mT if array.ndim >= 2 and array.shape[-1] < array.shape[-2] else array


def _turn_back(array: Array, like: Array) -> Array:
    return array if array.shape == like.shape else array.mT


class _AdamState(NamedTuple):
    momentum: Any
    rms: Any


def _scale_by_uncorrected_adam() -> optax.GradientTransformation:
    """Scales by `m · rsqrt(v + 1e-8)` with Adam's accumulators and no bias correction."""
    beta1, beta2 = ADAMW_BETAS

    def init(params: Any) -> _AdamState:
        return _AdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: _AdamState, params: Any = None) -> tuple[Any, _AdamState]:
        del params
        momentum = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.momentum, grads)
        rms = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.rms, grads)
        steps = jax.tree.map(lambda m, v: m * jax.lax.rsqrt(v + ADAMW_EPS), momentum, rms)
        return steps, _AdamState(momentum, rms)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
