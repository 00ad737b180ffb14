"""Layouts: the matrices in a tensor and the axes of its factored accumulators, as in `celo2.jax.dimensions`.

Without dimension numbers, the reference's conventions apply (arXiv 2602.19142 and its code): the
accumulators are factored over the two largest axes, while normalisation and Newton–Schulz act on
the last two. With them, the tensor is viewed as matrices and both act on these, whatever the storage.

Unlike in JAX, matrices keep their storage order: a linear layer's `(out, in)` is not transposed; its axes
are named instead, so `enter` and `leave` copy nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from celo2.routing.dimension_numbers import DimensionNumbers, find_matrix_axes


class Axes(NamedTuple):
    """Factored axes, counted from the end: `row` is averaged over `large`, `col` over `small`."""

    small: int
    large: int


def make_axes(shape: Sequence[int]) -> Axes | None:
    """Returns the two largest axes, ties in index order, or None for rank < 2.

    Example:
        >>> make_axes((3, 3, 16, 32))
        Axes(small=-2, large=-1)
        >>> make_axes((24, 16))
        Axes(small=-1, large=-2)
    """
    if len(shape) < 2:
        return None
    small, large = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]  # a stable sort
    return Axes(small - len(shape), large - len(shape))


class MatrixView(NamedTuple):
    """A parameter viewed as matrices, `(batch, output, reduction)` or `(batch, reduction, output)`."""

    permutation: tuple[int, ...]
    permuted_shape: tuple[int, ...]
    split_shape: tuple[int, ...]  # (batch, splits, rows, columns), or (batch, rows, splits, columns)
    output_first: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(batch · splits, rows, columns)`."""
        batch, first, second, columns = self.split_shape
        splits, rows = (first, second) if self.output_first else (second, first)
        return batch * splits, rows, columns

    @property
    def keeps_order(self) -> bool:
        """Whether the matrices of a contiguous tensor are a view of it."""
        in_place = self.output_first or self.split_shape[2] == 1
        return in_place and self.permutation == tuple(range(len(self.permutation)))

    def to_matrices(self, tensor: Tensor) -> Tensor:
        """Views a tensor of the parameter's own shape in `shape`."""
        split = tensor.permute(self.permutation).reshape(self.split_shape)
        return (split if self.output_first else split.transpose(1, 2)).reshape(self.shape)

    def from_matrices(self, matrices: Tensor) -> Tensor:
        """Inverts `to_matrices`."""
        batch, first, second, columns = self.split_shape
        if not self.output_first:
            matrices = matrices.reshape(batch, second, first, columns).transpose(1, 2)
        permuted = matrices.reshape(self.permuted_shape)
        order = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return permuted.permute(order)


def make_view(shape: Sequence[int], numbers: DimensionNumbers) -> MatrixView:
    """Makes the matrix view of a shape and checks the dimension numbers against it.

    Args:
        shape: The parameter's shape, rank ≥ 2.
        numbers: The dimension numbers.

    Raises:
        TypeError: `numbers` is not a specification.
        ValueError: An axis is out of range or named twice, or the output cannot be split.
    """
    if not isinstance(numbers, DimensionNumbers):
        raise TypeError(f"dimension numbers must be DimensionNumbers or None, got {numbers!r}.")
    batch_axes, reduction, output, splits = find_matrix_axes(shape, numbers)
    batch, inputs, output_size = (_size(shape, axes) for axes in (batch_axes, reduction, output))
    output_first = min(output) < min(reduction)
    permutation = batch_axes + (output + reduction if output_first else reduction + output)
    split = (
        (batch, splits, output_size // splits, inputs)
        if output_first
        else (batch, inputs, splits, output_size // splits)
    )
    return MatrixView(permutation, tuple(shape[axis] for axis in permutation), split, output_first)


class Layout(NamedTuple):
    """The shape and axes in which the rule computes one parameter.

    Attributes:
        shape: The shape in which the rule computes, rank ≥ 2: a vector of n numbers is `(n, 1)`.
        axes: The factored axes, None for a parameter of rank < 2.
        view: The matrix view; None: the parameter as stored.
    """

    shape: tuple[int, ...]
    axes: Axes | None
    view: MatrixView | None = None

    @property
    def keeps_order(self) -> bool:
        """Whether `enter` returns a view of a contiguous tensor."""
        return self.view is None or self.view.keeps_order

    def enter(self, tensor: Tensor) -> Tensor:
        """Views a tensor of the parameter's own shape in `shape`."""
        return tensor.reshape(self.shape) if self.view is None else self.view.to_matrices(tensor)

    def leave(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverts `enter`; `shape` is the parameter's."""
        return tensor.reshape(tuple(shape)) if self.view is None else self.view.from_matrices(tensor)


@functools.cache
def make_layout(shape: tuple[int, ...], numbers: DimensionNumbers | None = None) -> Layout:
    """Makes the layout of a shape; without numbers, as stored, which is the reference's convention."""
    if numbers is None:
        axes = make_axes(shape)
        return Layout(tuple(shape) if axes else (math.prod(shape), 1), axes)
    view = make_view(shape, numbers)
    rows, columns = view.shape[1:]
    # Ties are ordered as (reduction, output), so that a square matrix gives the same result either way.
    last_is_large = columns > rows or (columns == rows and not view.output_first)
    return Layout(view.shape, Axes(-2, -1) if last_is_large else Axes(-1, -2), view)


def _size(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes)
