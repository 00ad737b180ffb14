"""The rule on many arrays: small ones of equal shape are stacked and updated together.

A small array costs the launch of some thirty kernels, and every array compiles its own, so the
vectors of a deep network would cost more than its matrices. Large arrays are not copied.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig
from celo2.jax import step as step_lib
from celo2.jax.accumulators import Accumulators
from celo2.jax.dimensions import Layout
from celo2.jax.rounding import round_all

__all__ = ["STACK_LIMIT", "Leaf", "update_leaves"]

ROUNDING_SEED = 0  # of the stochastic rounding of a bfloat16 state
STACK_LIMIT = 1 << 15  # elements of the largest array that is worth a copy


class Leaf(NamedTuple):
    """One array of the trained tree: gradient, parameter, accumulators."""

    grad: Array
    param: Array
    accumulators: Accumulators


def update_leaves(
    arrays: Mapping[str, Any],
    leaves: Sequence[Leaf],
    layouts: Sequence[Layout],
    count: Array,
    rule: RuleConfig,
) -> list[tuple[Array, Accumulators]]:
    """The un-negated step and the new accumulators of every leaf, in order.

    Args:
        arrays: The network's weights by name.
        leaves: What is updated.
        layouts: How the rule sees each.
        count: This step's number, from 1.
        rule: The rule's options.
    """
    results: dict[int, tuple[Array, Accumulators]] = {}
    for indices in _group(leaves, layouts):
        update = partial(_update_leaf, arrays=arrays, count=count, layout=layouts[indices[0]], rule=rule)
        if len(indices) == 1:
            results[indices[0]] = update(leaves[indices[0]], indices[0])
            continue
        stacked = jax.tree.map(lambda *same: jnp.stack(same), *[leaves[index] for index in indices])
        together = jax.vmap(update)(stacked, jnp.asarray(indices))
        for place, index in enumerate(indices):
            results[index] = jax.tree.map(lambda array, place=place: array[place], together)
    return [results[index] for index in range(len(leaves))]


def _group(leaves: Sequence[Leaf], layouts: Sequence[Layout]) -> list[list[int]]:
    """Indices of the leaves that are updated together."""
    groups: dict[Hashable, list[int]] = {}
    for index, (leaf, layout) in enumerate(zip(leaves, layouts, strict=True)):
        same = (leaf.grad.shape, leaf.grad.dtype, leaf.param.dtype, layout)
        groups.setdefault(same if leaf.grad.size <= STACK_LIMIT else index, []).append(index)
    return list(groups.values())


def _update_leaf(
    leaf: Leaf,
    index: int | Array,
    *,
    arrays: Mapping[str, Any],
    count: Array,
    layout: Layout,
    rule: RuleConfig,
) -> tuple[Array, Accumulators]:
    """`step.update` in the layout's shape and the row accumulators' dtype.

    A state of a smaller dtype is rounded by a key made of the step's number and the leaf's index.
    """
    grad, param, accumulators = leaf
    dtype, stored = accumulators.row[0].dtype, accumulators.momentum[0].dtype
    momentum, rms = (tuple(layout.enter(full) for full in fulls) for fulls in accumulators[:2])
    step, accumulators = step_lib.update(
        {name: array.astype(dtype) for name, array in arrays.items()},
        layout.enter(grad),
        layout.enter(param),
        accumulators._replace(momentum=momentum, rms=rms),
        count,
        axes=layout.axes,
        config=rule,
    )
    momentum, rms = (tuple(map(layout.leave, fulls)) for fulls in accumulators[:2])
    if stored != dtype:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(ROUNDING_SEED), count), index)
        rounded = round_all(key, (*momentum, *rms))
        momentum, rms = rounded[: len(momentum)], rounded[len(momentum) :]
    return layout.leave(step).astype(grad.dtype), accumulators._replace(momentum=momentum, rms=rms)
