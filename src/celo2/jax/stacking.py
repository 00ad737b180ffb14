"""Stacks trees of arrays, and slices stacks at offsets that are hidden from XLA.

A kernel that begins with a slice at a known offset is compiled once for each offset, and each repeats the
computation of the stack: a deep network would have hundreds of kernels that differ in one number. So the
offsets, and the stack itself, pass through a loop that never runs, which XLA cannot know.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap


def stack(trees: Sequence[Any]) -> Any:
    """Stacks trees of equal structure and shapes along a new first axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def unstack(tree: Any, number: int, count: Array) -> list[Any]:
    """Returns the parts of a stack, as trees.

    Args:
        tree: Arrays with a first axis of length `number`.
        number: The number of parts.
        count: The step count, a traced integer ≥ 0.
    """
    if number == 1 or jax.default_backend() != "cpu":
        return _slice(tree, number)
    hidden = custom_vmap(partial(_take_hidden, number))
    hidden.def_vmap(partial(_take_known, number))
    # A loop has no transpose, so derivatives use known offsets.
    take = jax.custom_jvp(hidden)
    take.defjvp(lambda primals, tangents: (take(*primals), _slice(tangents[0], number)))
    return take(tree, count)


def _slice(tree: Any, number: int) -> list[Any]:
    return [jax.tree.map(lambda array, place=place: array[place], tree) for place in range(number)]


def _take_hidden(number: int, tree: Any, count: Array) -> list[Any]:
    hidden = (tree, tuple(map(jnp.int32, range(number))))
    tree, places = jax.lax.while_loop(lambda _: count < 0, _change, hidden)
    return [_take(tree, place) for place in places]


def _take_known(number: int, size: int, batched: list[Any], tree: Any, count: Array) -> tuple[Any, Any]:
    """Slices at known offsets, for `vmap`, which would batch the loop's values and with them the offsets."""
    del size, count

    def take(place: int) -> Any:
        return jax.tree.map(lambda array, own: array[:, place] if own else array[place], tree, batched[0])

    return list(map(take, range(number))), [batched[0]] * number


def _change(tree: Any) -> Any:
    """Changes every value: XLA moves loop-invariant values out of a loop."""
    return jax.tree.map(lambda x: ~x if x.dtype == bool else -x, tree)


def _take(tree: Any, place: Array) -> Any:
    return jax.tree.map(
        lambda array: jax.lax.dynamic_index_in_dim(
            array, place, keepdims=False, allow_negative_indices=False
        ),
        tree,
    )
