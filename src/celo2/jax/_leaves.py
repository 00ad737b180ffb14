"""The leaves of a parameter tree as routing sees them: path, shape, dtype, identity."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Leaf", "Part", "make_leaf", "named_leaves", "path_name", "split_words"]


class Part(NamedTuple):
    """One name on a path, and the words in it."""

    text: str
    words: frozenset[str]
    last_word: str


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """All that routing looks at.

    Attributes:
        path: Its `/`-joined names.
        shape: Its shape.
        is_complex: Whether its numbers are complex, which the rule does not handle.
        identity: Equal for two leaves that are one object in memory.
    """

    path: str
    shape: tuple[int, ...]
    is_complex: bool
    identity: int

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The names on its path; a bare array has one, the empty name."""
        split = [(text, split_words(text)) for text in self.path.split("/")]
        return tuple(Part(text, frozenset(words), words[-1] if words else "") for text, words in split)

    @property
    def nearest(self) -> tuple[Part, ...]:
        """Its own name, then its module's."""
        return self.parts[:-3:-1]

    @property
    def module(self) -> str:
        """The path of what holds it."""
        return self.modules[-1]

    @property
    def modules(self) -> list[str]:
        """The paths of all that hold it, from the root (the empty path) down."""
        names = self.path.split("/")
        return ["/".join(names[:depth]) for depth in range(len(names))]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether two axes or more are longer than 1; a kernel (64, 1) is a vector in effect."""
        return sum(size > 1 for size in self.shape) > 1


def make_leaf(path: str, value: Any) -> Leaf:
    """Describes one leaf.

    Raises:
        TypeError: If it is not an array of floating-point or complex numbers.
    """
    dtype = np.result_type(type(value)) if type(value) in (float, complex) else getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"{path or 'the tree'!r} cannot be trained: expected floating-point numbers, got "
            f"{type(value).__name__ if dtype is None else dtype}. Pass the trainable leaves only: "
            "variables['params'] (Linen), nnx.state(model, nnx.Param) (NNX), "
            "eqx.filter(model, eqx.is_inexact_array) (Equinox), or set the leaf to None."
        )
    return Leaf(path, tuple(np.shape(value)), jnp.issubdtype(dtype, jnp.complexfloating), id(value))


def path_name(path: tuple[Any, ...]) -> str:
    """The `/`-joined plain names of a JAX key path: `block_0/attention/query/kernel`.

    Example:
        >>> import jax
        >>> [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"h": [1.0, {"w": 2.0}]})]
        ['h/0', 'h/1/w']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their path names, in the order of `jax.tree.leaves`.

    Flax wraps an array in a box (`nnx.Variable`, `linen.Partitioned`) whose only child is the
    attribute `value`. The box is no part of the name: `head/kernel`, not `head/kernel/value`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    children = Counter(path[:-1] for path, _ in leaves)
    return [
        (path_name(path[:-1] if _ends_in_value(path) and children[path[:-1]] == 1 else path), leaf)
        for path, leaf in leaves
    ]


def split_words(text: str) -> list[str]:
    """Splits a name at underscores, digits and changes of case; all in lower case.

    Example:
        >>> split_words("MultiHeadAttention_0"), split_words("pos_embedding2"), split_words("overhead")
        (['multi', 'head', 'attention'], ['pos', 'embedding'], ['overhead'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)]


def _ends_in_value(path: tuple[Any, ...]) -> bool:
    return len(path) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
