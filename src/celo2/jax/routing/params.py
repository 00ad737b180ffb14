"""Describes the leaves of a parameter tree for routing: names, shape, and the matrix in each."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from celo2.jax.routing.stacks import find_stack_axes
from celo2.routing import Kind, Matrix, Param, make_names
from celo2.routing.axes import (
    OUTPUT_WORDS,
    count_parts,
    find_matrix,
    make_matrix,
    with_parts,
)
from celo2.routing.dimension_numbers import DimensionNumbers
from celo2.routing.names import KERNEL_NAMES, is_norm, is_query, make_name, split_words

GATES = {"LSTMCell": 4, "GRUCell": 3}  # matrices side by side in Equinox's recurrent cells
EQX_NORMS = ("LayerNorm", "GroupNorm", "RMSNorm", "BatchNorm")
TABLE_NAMES = ("embedding", "embeddings")  # names of the table in embedding layers of Flax and Haiku
DEPTHWISE_WORDS = {"depthwise", "dw", "dwconv"}


class Leaf(NamedTuple):
    """One leaf of a tree.

    Attributes:
        path: The `/`-joined names.
        value: The array.
        holders: The modules on the path, root first; None for dictionaries and lists.
    """

    path: str
    value: Any
    holders: tuple[Any, ...]


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the `/`-joined plain names of a JAX key path: `block_0/attention/query/kernel`.

    Example:
        >>> import jax
        >>> [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"h": [1.0, {"w": 2.0}]})]
        ['h/0', 'h/1/w']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def read_tree(tree: Any, is_leaf: Any = None) -> list[Leaf]:
    """Returns the leaves of a tree in the order of `jax.tree.leaves`.

    Flax wraps arrays in a box (`nnx.Variable`, `linen.Partitioned`) whose only child is the
    attribute `value`. The box is not part of the name: `head/kernel`, not `head/kernel/value`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    children = Counter(path[:-1] for path, _ in leaves)
    found = []
    for path, value in leaves:
        boxed = _ends_in_value(path) and children[path[:-1]] == 1
        keys = path[:-1] if boxed else path
        found.append(Leaf(path_name(keys), value, _find_holders(tree, keys)))
    return found


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of a tree with their path names, in the order of `jax.tree.leaves`."""
    return [(leaf.path, leaf.value) for leaf in read_tree(tree)]


def has_holes(tree: Any) -> bool:
    """Returns whether `optax.masked` or `optax.partition` removed leaves: the tree is a part of a network."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    return any(isinstance(leaf, optax.MaskedNode) for leaf in leaves)


def describe_leaves(leaves: Sequence[Leaf]) -> list[Param]:
    """Describes each leaf by its module, its names and its shape.

    Raises:
        TypeError: A leaf is not an array of floating-point or complex numbers.
    """
    shapes = {leaf.path: tuple(np.shape(leaf.value)) for leaf in leaves}
    stacks = find_stack_axes(shapes)
    beside = defaultdict(list)
    for path in shapes:
        beside[path.rpartition("/")[0]].append(path)
    attentions = {
        _unit(path).rpartition("/")[0] for path in shapes if is_query(make_name(_unit(path).split("/")[-1]))
    }
    params = [_describe(leaf, shapes, beside, stacks, attentions) for leaf in leaves]
    params = [_find_depthwise(param, params) for param in params]
    readers = _inputs_of_outputs(params)
    return [_cut_fused(param, readers) for param in params]


def _describe(
    leaf: Leaf,
    shapes: Mapping[str, tuple[int, ...]],
    beside: Mapping[str, Sequence[str]],
    stacks: Mapping[str, tuple[int, ...]],
    attentions: set[str],
) -> Param:
    dtype = _check_dtype(leaf)
    shape, texts = shapes[leaf.path], leaf.path.split("/")
    layer = leaf.holders[-1] if leaf.holders else None
    names = make_names(texts, _class_names(texts, leaf.holders))
    kind, matrix = _find_equinox_matrix(layer, texts[-1], shape)
    if kind is None:
        same = [shapes[path] for path in beside[leaf.path.rpartition("/")[0]] if path != leaf.path]
        batch = stacks.get(leaf.path, ())
        in_attention = _unit(leaf.path).rpartition("/")[0] in attentions
        kind, matrix = _find_matrix(names, shape, same, batch, in_attention=in_attention)
    is_complex = bool(jnp.issubdtype(dtype, jnp.complexfloating))
    layer_class = type(layer).__name__ if layer is not None else ""
    owner = _find_owner(leaf.path, beside)
    return Param(leaf.path, names, shape, kind, layer_class, matrix, id(leaf.value), owner, is_complex)


def _check_dtype(leaf: Leaf) -> Any:
    path, value = leaf.path, leaf.value
    dtype = np.result_type(type(value)) if type(value) in (float, complex) else getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"{path or 'the tree'!r} cannot be trained: expected floating-point numbers, got "
            f"{type(value).__name__ if dtype is None else dtype}. Pass the trainable leaves only: "
            "variables['params'] (Linen), nnx.state(model, nnx.Param) (NNX), "
            "eqx.filter(model, eqx.is_inexact_array) (Equinox), or set the leaf to None."
        )
    return dtype


def _find_holders(tree: Any, keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the Equinox modules on the path to a leaf, root first; None for any other node."""
    holders, node = [], tree
    for key in keys:
        holders.append(node if _equinox_class(node) else None)
        node = _child(node, key)
    return tuple(holders)


def _child(node: Any, key: Any) -> Any:
    """Returns a node's child at a key, or None if unknown."""
    if isinstance(key, jax.tree_util.GetAttrKey):
        return getattr(node, key.name, None)
    if isinstance(key, jax.tree_util.SequenceKey) and isinstance(node, Sequence):
        return node[key.idx]
    if isinstance(key, jax.tree_util.DictKey) and isinstance(node, Mapping):
        return node[key.key]
    return None


def _equinox_class(node: Any) -> str:
    """Returns the Equinox layer class of an object, `Module` for a user's module, or an empty string."""
    for made in type(node).__mro__:
        if made.__module__.startswith("equinox.nn"):
            return made.__name__
    return "Module" if any(made.__module__.startswith("equinox") for made in type(node).__mro__) else ""


def _class_names(texts: Sequence[str], holders: Sequence[Any]) -> list[str]:
    """Returns the class of the user's module behind each name but the last, or empty strings."""
    if len(holders) != len(texts):  # a dictionary key that contains slashes
        return []
    return [type(holder).__name__ if _equinox_class(holder) == "Module" else "" for holder in holders[1:]]


def _find_equinox_matrix(layer: Any, own: str, shape: tuple[int, ...]) -> tuple[Kind | None, Matrix | None]:
    """Returns the kind of an Equinox layer and the matrix in its parameter; None for any other layer."""
    made = _equinox_class(layer)
    if made.rstrip("123d") in ("Conv", "ConvTranspose") and len(shape) > 2 and own == "weight":
        is_plain = "Transpose" not in made
        splits = layer.groups if is_plain and shape[0] > layer.groups else 1
        numbers = DimensionNumbers(tuple(range(1, len(shape))), 0, splits)
        note = "hidden, convolution" if is_plain else "hidden, transposed convolution"
        kind = "depthwise" if 1 < layer.groups == layer.in_channels else "convolution"
        return kind, Matrix(numbers, layer.in_channels, shape[0], note)
    if made in EQX_NORMS:
        return "norm", None
    if made == "Embedding" and own == "weight":
        return "embedding", None
    if len(shape) != 2 or own not in ("weight", "weight_ih", "weight_hh"):
        return None, None
    if made == "Linear":
        return "linear", make_matrix(shape, (1,), (0,))
    if made in GATES:
        whole = make_matrix(shape, (1,), (0,), note="hidden, recurrent")
        return "recurrent", with_parts(whole, shape, GATES[made], whole.note)
    return None, None


def _find_matrix(
    names: Sequence[Any],
    shape: tuple[int, ...],
    beside: Sequence[tuple[int, ...]],
    batch: tuple[int, ...],
    *,
    in_attention: bool,
) -> tuple[Kind, Matrix | None]:
    """Returns a parameter's kind and matrix by names and shapes, including its siblings' shapes."""
    own = names[-1]
    if len(shape) < 2:
        return ("norm" if own.text == "scale" or any(map(is_norm, names[-2:])) else "bare"), None
    if sum(size > 1 for size in shape) < 2:
        return "bare", None
    if own.text in TABLE_NAMES and len(shape) == 2:
        return "embedding", None
    if len(shape) - len(batch) < 2:
        return "matrix", None  # a stack of vectors
    transposed = "weight" in own.words
    bias = beside[0][0] if len(beside) == 1 and len(beside[0]) == 1 else 0  # the size of a lone vector
    if len(shape) == 2 and shape.count(bias) == 1:
        transposed = shape[0] == bias
    kind, matrix = find_matrix(names, shape, batch=batch, transposed=transposed, in_attention=in_attention)
    if kind == "matrix" and bias in shape and own.text in KERNEL_NAMES:
        kind = "linear"
    return kind, matrix


def _find_owner(path: str, beside: Mapping[str, Sequence[str]]) -> str:
    """Returns the path of the kernel or table that a low-rank adapter belongs to, or an empty string."""
    module, _, own = path.rpartition("/")
    if "lora" not in split_words(own):
        return ""
    bases = [other for other in beside[module] if other.rpartition("/")[2] in (*KERNEL_NAMES, *TABLE_NAMES)]
    return bases[0] if bases else ""


def _find_depthwise(param: Param, params: Sequence[Param]) -> Param:
    """Marks a convolution with one input channel as depthwise, unless it may read the data."""
    if not _has_one_input(param):
        return param
    depthwise = dataclasses.replace(param, kind="depthwise")
    if any(DEPTHWISE_WORDS & name.words for name in param.names):
        return depthwise
    others = [other for other in params if _has_one_input(other) and other is not param]
    is_first = all(len(other.places) > len(param.places) for other in others)
    return param if is_first and not _is_data_read(param, params) else depthwise


def _has_one_input(param: Param) -> bool:
    return param.kind == "convolution" and param.matrix is not None and param.matrix.inputs == 1


def _is_data_read(param: Param, params: Sequence[Param]) -> bool:
    """Returns whether another layer reads the data, or siblings both produce and read its channels."""
    readers = [other for other in params if other.matrix is not None and not _has_one_input(other)]
    made = {other.outputs for other in params if other.matrix is not None}
    if any(other.kind == "embedding" for other in params) or any(
        all(reader.inputs % size for size in made) for reader in readers
    ):
        return True
    beside = [other for other in readers if other.holder == param.holder and other.rank == 2]
    return {param.outputs} <= {other.inputs for other in beside} & {other.outputs for other in beside}


def _unit(path: str) -> str:
    """Returns the path of the layer that holds a kernel; for other parameters, their own path."""
    module, _, own = path.rpartition("/")
    return module if own in KERNEL_NAMES and module else path


def _inputs_of_outputs(params: Sequence[Param]) -> Mapping[tuple[str, ...], set[int]]:
    """Returns the input sizes of output projections by module, all attention heads together."""
    found: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for param in params:
        if param.matrix is not None and OUTPUT_WORDS & make_name(param.unit[-1]).words:
            found[param.holder].add(param.inputs)
    return found


def _cut_fused(param: Param, readers: Mapping[tuple[str, ...], set[int]]) -> Param:
    """Splits a fused matrix where its name and the sizes show how."""
    if param.matrix is None or param.owner or param.kind not in ("linear", "matrix", "stack"):
        return param
    parts, what = count_parts(param.names, param.matrix, sorted(readers.get(param.holder, ())))
    matrix = with_parts(param.matrix, param.shape, parts, f"hidden, split into {what}")
    return dataclasses.replace(param, matrix=matrix)


def _ends_in_value(path: tuple[Any, ...]) -> bool:
    return len(path) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
