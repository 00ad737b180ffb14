"""The inner optimizer: the rule, or a predecessor, with the weights being learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from celo2.jax.dimensions import Layout
from celo2.jax.routing.labels import find_dimension_numbers
from celo2.jax.state import make_layouts
from celo2.jax.transform import ADAMW_BETAS, scale_by_celo2
from celo2.meta.config import MetaConfig
from celo2.meta.inner.expert import make_expert, with_direction_loss
from celo2.meta.pes import Theta
from celo2.routing.dimension_numbers import DimensionNumbers
from celo2.zoo.transform import make_transform

ADAMW_EPS = 1e-8  # under the root of the second moment in the meta-training's AdamW branch


def make_inner_optimizer(
    theta: Theta, config: MetaConfig, num_steps: ArrayLike = 1
) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer of the inner runs at the peak learning rate, without weight decay.

    Celo2-base applies the rule to every parameter. Celo2 applies it to matrices; vectors get Adam's
    direction without bias correction at `adamw_lr_scale` times the rate, as in the published
    meta-training. A predecessor is its unchanged public transform. With an expert, the state is a
    `DirectionLossState`, for the arrays that the rule updates.

    Args:
        theta: The weights, traced.
        config: The recipe.
        num_steps: Length of the run, used by predecessors.

    Returns:
        A transform whose `update` accepts the loss as `value=`.
    """
    if config.member is not None:
        return make_transform(theta, config.member, num_steps)
    optimizer = _make_celo2(theta, config)
    if not config.expert:
        return optimizer
    first_rank = 0 if config.variant == "celo2-base" else 2
    return with_direction_loss(optimizer, make_expert(config.expert), lambda array: array.ndim >= first_rank)


def _make_celo2(theta: Theta, config: MetaConfig) -> optax.GradientTransformationExtraArgs:
    make_rule = partial(scale_by_celo2, theta, **dataclasses.asdict(config.rule))
    rate, is_base = config.inner_learning_rate, config.variant == "celo2-base"
    vectors = optax.chain(_scale_by_uncorrected_adam(), optax.scale(-rate * config.adamw_lr_scale))

    def make(params: Any) -> optax.GradientTransformation:
        numbers = find_dimension_numbers(params, base=is_base)
        direction = on_matrices(lambda seen: make_rule(dimension_numbers=seen), numbers)
        rule = optax.chain(direction, optax.scale(-rate))
        if is_base:
            return rule
        labels = jax.tree.map(lambda leaf: "celo2" if leaf.ndim >= 2 else "adamw", params)
        return optax.partition({"celo2": rule, "adamw": vectors}, labels)

    return from_params(make)


def from_params(
    make: Callable[[Any], optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer that a function makes from the parameters, their names and shapes."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return optax.with_extra_args_support(make(params)).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(lambda params: make(params).init(params), update)


def on_matrices(
    make_rule: Callable[[Any], optax.GradientTransformation], numbers: Any
) -> optax.GradientTransformationExtraArgs:
    """Applies a rule to the matrices in each array with the longer axis last, and stores its state that way.

    The rule does not distinguish the two axes of a matrix unless they are equal, and a processor computes
    many short rows several times slower than a few long ones.

    Args:
        make_rule: `(dimension numbers) → rule`, given the numbers of the stacks of matrices that the rule
            sees; None where an array is used as stored.
        numbers: Dimension numbers of the arrays, as returned by `find_dimension_numbers`; None: all arrays
            are used as stored.
    """

    def find(params: Any) -> tuple[Any, optax.GradientTransformationExtraArgs]:
        layouts = make_layouts(params, numbers)
        seen = jax.tree.map(lambda _, layout: STACK if layout.view else None, params, layouts)
        return layouts, optax.with_extra_args_support(make_rule(seen))

    def init(params: Any) -> Any:
        layouts, rule = find(params)
        return rule.init(jax.tree.map(_enter, params, layouts))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        layouts, rule = find(params)
        entered = (jax.tree.map(_enter, tree, layouts) for tree in (updates, params))
        # The barriers keep the transposition out of the rule's loops, which would read with strides.
        grads, values = jax.lax.optimization_barrier(tuple(entered))
        steps, state = rule.update(grads, state, values, **extra)
        return jax.tree.map(_leave, jax.lax.optimization_barrier(steps), layouts), state

    return optax.GradientTransformationExtraArgs(init, update)


STACK = DimensionNumbers(1, 2)  # of a stack of matrices, `(batch, reduction, output)`


def _enter(array: Array, layout: Layout) -> Array:
    return _turn(layout.enter(array), layout)


def _leave(step: Array, layout: Layout) -> Array:
    return layout.leave(_turn(step, layout))


def _turn(array: Array, layout: Layout) -> Array:
    """Transposes matrices that are taller than wide in the layout; its own inverse."""
    is_tall = len(layout.shape) >= 2 and layout.shape[-1] < layout.shape[-2]
    return array.mT if is_tall else array


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
