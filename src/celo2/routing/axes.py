"""Infers the matrix inside a parameter, with its input and output axes, from names and shape.

This serves parameters of unknown layers (JAX trees, user-defined classes). `kernel` and bare arrays
are `(in, out)`, as in Flax and Haiku; `weight` is `(out, in)`, as in PyTorch and Equinox.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from celo2.routing.dimension_numbers import DimensionNumbers
from celo2.routing.names import (
    CONVOLUTION_WORDS,
    EXPERT_WORDS,
    KERNEL_NAMES,
    Name,
    is_attention,
    is_query,
)
from celo2.routing.params import Kind, Matrix

QKV_WORDS = ({"qkv"}, {"wqkv"}, {"c", "attn"})
GATE_UP_WORDS = ({"gate", "up"}, {"up", "gate"}, {"gate", "and", "up"})
KEY_VALUE_WORDS = ({"kv"}, {"to", "kv"}, {"kv", "proj"}, {"key", "value"})
FUSED_WORDS = {"qkv", "kv", "wqkv"}
INTERLEAVED = (
    "CodeGenAttention",
    "GPTBigCodeAttention",
    "GptOssExperts",
)  # classes whose fused parts are not side by side
OUTPUT_WORDS = {"out", "o", "wo", "output", "proj"}
Axes = tuple[int, ...]


def make_matrix(
    shape: Sequence[int], reduction: Axes, output: Axes, splits: int = 1, note: str = "hidden matrix"
) -> Matrix:
    """Makes a matrix along these axes; all other axes are batch axes.

    Example:
        >>> make_matrix((64, 4, 16), (0,), (1, 2)).outputs
        64
    """
    numbers: DimensionNumbers | None = DimensionNumbers(_plain(reduction), _plain(output), splits)
    if len(shape) == 2 and (reduction, output, splits) == ((0,), (1,), 1):
        numbers = None  # as stored: the reference's convention is the same
    inputs, outputs = (math.prod(shape[axis] for axis in axes) for axes in (reduction, output))
    return Matrix(numbers, inputs, outputs, note)


def find_matrix(
    names: Sequence[Name],
    shape: Sequence[int],
    *,
    batch: Axes = (),
    transposed: bool = False,
    in_attention: bool = False,
) -> tuple[Kind, Matrix]:
    """Infers the kind of layer and its matrix from names and shape.

    Args:
        names: The names on the parameter's path, root first.
        shape: The parameter's shape, rank ≥ 2 without the batch axes.
        batch: The axes over layers (a scan) or experts, where known.
        transposed: Whether a matrix is stored `(out, in)`.
        in_attention: Whether its siblings include a query, key or value.

    Example:
        >>> from celo2.routing.params import make_names
        >>> find_matrix(make_names(["attn", "query", "kernel"]), (64, 4, 16))[1].numbers
        DimensionNumbers(reduction_axis=0, output_axis=(1, 2), output_splits=1)
        >>> find_matrix(make_names(["Conv_0", "kernel"]), (3, 3, 8, 16))[1].numbers
        DimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3, output_splits=1)
    """
    axes = tuple(axis for axis in range(len(shape)) if axis not in batch)
    own, layer = names[-1], names[-2] if names[-1].text in KERNEL_NAMES and len(names) > 1 else names[-1]
    in_experts = any(EXPERT_WORDS & name.words for name in names)
    first, second = axes[-2:]
    last_two = ((second,), (first,)) if transposed else ((first,), (second,))
    if len(axes) == 2:
        kind: Kind = "stack" if batch else "matrix"
        return kind, make_matrix(shape, *last_two, note=_stack_note(batch))
    if transposed and (found := _outputs_first_axes(names, layer, axes)):
        return "attention", make_matrix(shape, *found, note="hidden, attention" + _over(batch))
    if found := _attention_axes(names, layer, shape, axes, in_attention=in_attention):
        return "attention", make_matrix(shape, *found, note="hidden, attention" + _over(batch))
    is_convolution = any(CONVOLUTION_WORDS & name.words for name in names) or len(axes) > 3
    if own.text in KERNEL_NAMES and is_convolution and not in_experts:
        return _convolution(shape, axes, batch, transposed=transposed)
    return "stack", make_matrix(shape, *last_two, note=_stack_note((*batch, *axes[:-2])))


def with_parts(matrix: Matrix, shape: Sequence[int], parts: int, note: str) -> Matrix:
    """Splits the output of a matrix into equal parts, each a separate matrix."""
    if parts == 1:
        return matrix
    numbers = matrix.numbers or DimensionNumbers(len(shape) - 2, len(shape) - 1)
    return Matrix(numbers._replace(output_splits=parts), matrix.inputs, matrix.outputs, note)


def count_parts(names: Sequence[Name], matrix: Matrix, head_inputs: Sequence[int] = ()) -> tuple[int, str]:
    """Counts the matrices in a fused one by its names, and describes them.

    Query, key and value count as three if each is as wide as the input or as the input of the layer's output
    projection; grouped queries have unequal parts and stay one matrix. Layers called `query_key_value` keep
    the three of each head together, and are not split either.

    Args:
        names: The names on the parameter's path.
        matrix: The whole matrix.
        head_inputs: The input sizes of the output projections beside it.

    Example:
        >>> from celo2.routing.params import make_names
        >>> count_parts(make_names(["attn", "qkv", "kernel"]), make_matrix((8, 24), (0,), (1,)))
        (3, 'q, k, v')
    """
    if is_interleaved(names):
        return 1, ""
    words = _layer_words(names)
    widths = {matrix.inputs, *head_inputs}
    if any(pair <= words for pair in QKV_WORDS) or (
        {"in", "proj"} <= words and any(is_attention(name) for name in names)
    ):
        if matrix.outputs in {3 * width for width in widths}:
            return 3, "q, k, v"
        if {"c", "attn"} <= words and matrix.outputs == 2 * matrix.inputs:
            return 2, "k, v"  # cross-attention
    if any(pair == words for pair in KEY_VALUE_WORDS) and matrix.outputs % 2 == 0:
        return 2, "k, v"
    if any(pair <= words for pair in GATE_UP_WORDS) and matrix.outputs % 2 == 0:
        return 2, "gate, up"
    return 1, ""


def looks_fused(names: Sequence[Name], matrix: Matrix, *, by_size: bool = False) -> bool:
    """Returns whether an unsplit matrix may still be fused, by its name or its readers.

    Args:
        names: The names on the parameter's path.
        matrix: The matrix in it.
        by_size: Whether sibling layers read a part of its output.
    """
    if is_interleaved(names) or (matrix.numbers is not None and matrix.numbers.output_splits > 1):
        return False
    words = _layer_words(names)
    if {"query", "key", "value"} <= words:
        return False  # by head, each with all three: no equal parts side by side
    return by_size or {"gate", "up"} <= words or bool(FUSED_WORDS & words)


def is_interleaved(names: Sequence[Name]) -> bool:
    """Returns whether a class is known to interleave the parts of a fused matrix, by head or alternately."""
    return any(name.is_class and name.text in INTERLEAVED for name in names)


def _layer_words(names: Sequence[Name]) -> frozenset[str]:
    plain = [name for name in names if not name.is_class]
    named_by_layer = plain[-1].text in KERNEL_NAMES and len(plain) > 1
    return (plain[-2] if named_by_layer else plain[-1]).words


def _attention_axes(
    names: Sequence[Name], layer: Name, shape: Sequence[int], axes: Axes, *, in_attention: bool
) -> tuple[Axes, Axes] | None:
    """Returns the axes of `(d, heads, head_dim)`, `(d, 3, heads, head_dim)` or `(heads, head_dim, d)`."""
    in_attention = in_attention or any(is_attention(name) for name in names)
    if "einsum" in layer.words and len(axes) in (3, 4):
        return _einsum_axes(layer, axes)
    if is_query(layer) and len(axes) == 3:
        if shape[axes[1]] == 3 and "qkv" in layer.words:
            return axes[:1], axes[2:]
        return axes[:1], axes[1:]
    if is_query(layer) and len(axes) == 4 and shape[axes[1]] in (2, 3):
        return axes[:1], axes[2:]
    if not in_attention or len(axes) != 3:
        return None
    first, second, third = (shape[axis] for axis in axes)
    if OUTPUT_WORDS & layer.words:  # (heads, head_dim, d), or (d, heads, head_dim) read backwards
        return (axes[1:], axes[:1]) if first == second * third != third else (axes[:2], axes[2:])
    return (axes[:1], axes[1:]) if first == second * third else None


def _einsum_axes(layer: Name, axes: Axes) -> tuple[Axes, Axes] | None:
    """Returns Gemma's axes: `(heads, d, head_dim)`, `(2, heads, d, head_dim)`, `(heads, head_dim, d)`."""
    if is_query(layer):
        return (axes[-2],), (axes[-3], axes[-1])
    return (axes[-3:-1], axes[-1:]) if is_attention(layer) else None


def _outputs_first_axes(names: Sequence[Name], layer: Name, axes: Axes) -> tuple[Axes, Axes] | None:
    """Returns a `weight`'s axes: a query's `(heads…, head_dim, d)`, an output's `(d, heads, head_dim)`."""
    if is_query(layer):
        return axes[-1:], axes[:-1]
    if any(is_attention(name) for name in names) and OUTPUT_WORDS & layer.words:
        return axes[1:], axes[:1]
    return None


def _convolution(shape: Sequence[int], axes: Axes, batch: Axes, *, transposed: bool) -> tuple[Kind, Matrix]:
    """Returns the matrix of a kernel `(window…, in, out)`, or `(out, in, window…)` as in PyTorch."""
    output, channels = (axes[0], axes[1]) if transposed else (axes[-1], axes[-2])
    reduction = tuple(axis for axis in axes if axis != output)
    matrix = make_matrix(shape, reduction, (output,), note="hidden, convolution" + _over(batch))
    return "convolution", Matrix(matrix.numbers, shape[channels], shape[output], matrix.note)


def _stack_note(batch: Axes) -> str:
    return "hidden, a stack of matrices" if batch else "hidden matrix"


def _over(batch: Axes) -> str:
    return ", a stack of them" if batch else ""


def _plain(axes: Axes) -> int | Axes:
    return axes[0] if len(axes) == 1 else axes
