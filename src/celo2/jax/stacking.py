"""Stacks trees of arrays, and takes stacks apart at places that XLA does not see.

A kernel that begins with a slice at a known place is compiled anew for each place, and what computes the
stack is repeated in each of them: a deep network would have hundreds of kernels that differ in a number. So
the places, and the stack itself, pass through a loop that never runs, which XLA cannot know.
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
    """Stacks trees of one structure and equal shapes along a new first axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def unstack(tree: Any, number: int, count: Array) -> list[Any]:
    """Returns the parts of a stack, as trees.

    Args:
        tree: Arrays with a first axis of length `number`.
        number: The number of parts.
        count: The number of the step, a traced integer ≥ 0.
    """
    if number == 1 or jax.default_backend() != "cpu":
        return _slice(tree, number)
    hidden = custom_vmap(partial(_take_hidden, number))
    hidden.def_vmap(partial(_take_known, number))
    # A loop has no transpose, so derivatives take the parts at known places.
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
    """Takes parts at known places, for `vmap`: it would batch the loop's values, and with them the places."""
    del size, count

    def take(place: int) -> Any:
        return jax.tree.map(lambda array, own: array[:, place] if own else array[place], tree, batched[0])

    return list(map(take, range(number))), [batched[0]] * number


def _change(tree: Any) -> Any:
    """Changes every value: what a loop leaves as it is, XLA takes out of it."""
    return jax.tree.map(lambda x: ~x if x.dtype == bool else -x, tree)


def _take(tree: Any, place: Array) -> Any:
    return jax.tree.map(
        lambda array: jax.lax.dynamic_index_in_dim(
            array, place, keepdims=False, allow_negative_indices=False
        ),
        tree,
    )
