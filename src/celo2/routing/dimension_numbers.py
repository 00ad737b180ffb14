"""User-specified matrix axes of a parameter, shared by all backends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class DimensionNumbers(NamedTuple):
    """The matrix axes of a parameter, named as in `optax.contrib.MuonDimensionNumbers`.

    Axes named in neither are batch axes: each of their entries is a separate matrix.

    Attributes:
        reduction_axis: The axis or axes that the layer sums over (its input).
        output_axis: The axis or axes of the layer's output.
        output_splits: The number of matrices side by side in the output, such as 3 for a fused query, key
            and value kernel of shape `(d, 3 d)`; the output size must be a multiple of it.

    Example:
        >>> DimensionNumbers(0, 2)  # (d, heads, head_dim), one matrix for each head
        DimensionNumbers(reduction_axis=0, output_axis=2, output_splits=1)
        >>> DimensionNumbers((0, 1, 2), 3)  # an HWIO convolution; PyTorch's is ((1, 2, 3), 0)
        DimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3, output_splits=1)
    """

    reduction_axis: int | Sequence[int] = 0
    output_axis: int | Sequence[int] = 1
    output_splits: int = 1


class MatrixAxes(NamedTuple):
    """The checked dimension numbers of one shape: non-negative axes, and the number of output splits."""

    batch: tuple[int, ...]
    reduction: tuple[int, ...]
    output: tuple[int, ...]
    splits: int


def find_matrix_axes(shape: Sequence[int], numbers: Any) -> MatrixAxes:
    """Checks dimension numbers against a shape and resolves their axes.

    Args:
        shape: The parameter's shape, rank ≥ 2.
        numbers: `DimensionNumbers`, or Optax's, which have no `output_splits`.

    Raises:
        ValueError: An axis is out of range or named twice, or the output cannot be split.
    """
    shape = tuple(shape)
    reduction = _as_axes(numbers.reduction_axis, shape, numbers)
    output = _as_axes(numbers.output_axis, shape, numbers)
    named = reduction + output
    if not reduction or not output or len(set(named)) != len(named):
        raise ValueError(
            f"{numbers} must name each axis of its matrix once, for a parameter of shape {shape}."
        )
    splits = getattr(numbers, "output_splits", 1)
    output_size = math.prod(shape[axis] for axis in output)
    if splits < 1 or output_size % splits:
        raise ValueError(f"{numbers}: an output of {output_size} cannot be cut into {splits} equal parts.")
    batch = tuple(axis for axis in range(len(shape)) if axis not in named)
    return MatrixAxes(batch, reduction, output, splits)


def _as_axes(axes: int | Sequence[int], shape: tuple[int, ...], numbers: Any) -> tuple[int, ...]:
    rank = len(shape)
    listed = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -rank <= axis < rank for axis in listed):
        raise ValueError(f"{numbers} names an axis that a parameter of shape {shape} does not have.")
    return tuple(axis % rank for axis in listed)
