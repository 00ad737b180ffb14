"""Layouts: the matrices in an array and the axes of its factored accumulators.

Without dimension numbers, the reference's conventions apply (arXiv 2602.19142 and its code): the accumulators
are factored over the two largest axes, while normalisation and Newton–Schulz act on the last two. With
dimension numbers, the array is viewed as `(batch, reduction, output)` matrices and both act on these,
whatever the storage layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import Array
from optax.contrib import MuonDimensionNumbers

from celo2.routing.dimension_numbers import DimensionNumbers, find_matrix_axes


class Axes(NamedTuple):
    """The factored axes: `row` accumulators are averaged over `large`, `col` over `small`."""

    small: int
    large: int


def make_axes(shape: Sequence[int], *, first: int = 0) -> Axes | None:
    """Returns the two largest axes from axis `first` on (ties in index order), or None if there are fewer.

    Example:
        >>> make_axes((3, 3, 16, 32))
        Axes(small=2, large=3)
        >>> make_axes((24, 16))
        Axes(small=1, large=0)
    """
    if len(shape) - first < 2:
        return None
    small, large = np.argsort(np.asarray(shape[first:]), kind="stable")[-2:]
    return Axes(int(small) + first, int(large) + first)


class MatrixView(NamedTuple):
    """A parameter viewed as matrices of shape `(batch, reduction, output)`."""

    permutation: tuple[int, ...]
    permuted_shape: tuple[int, ...]
    split_shape: tuple[int, ...]  # (batch, reduction, splits, output / splits)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(batch · splits, reduction, output / splits)`."""
        batch, reduction, splits, output = self.split_shape
        return batch * splits, reduction, output

    def to_matrices(self, array: Array) -> Array:
        """Reshapes an array of the parameter's own shape to `shape`."""
        split = array.transpose(self.permutation).reshape(self.split_shape)
        return split.transpose(0, 2, 1, 3).reshape(self.shape)

    def from_matrices(self, matrices: Array) -> Array:
        """Inverts `to_matrices`."""
        batch, reduction, splits, output = self.split_shape
        split = matrices.reshape(batch, splits, reduction, output).transpose(0, 2, 1, 3)
        return split.reshape(self.permuted_shape).transpose(np.argsort(self.permutation))


def make_view(shape: Sequence[int], numbers: DimensionNumbers | MuonDimensionNumbers) -> MatrixView:
    """Makes the matrix view of a shape and checks the dimension numbers against it.

    Args:
        shape: The parameter's shape, rank ≥ 2.
        numbers: The dimension numbers.

    Raises:
        TypeError: `numbers` is not a specification.
        ValueError: An axis is out of range or named twice, or the output cannot be split.
    """
    if not isinstance(numbers, DimensionNumbers | MuonDimensionNumbers):
        raise TypeError(f"dimension numbers must be DimensionNumbers or None, got {numbers!r}.")
    batch, reduction, output, splits = find_matrix_axes(shape, numbers)
    permutation = batch + reduction + output
    return MatrixView(
        permutation,
        tuple(shape[axis] for axis in permutation),
        (_size(shape, batch), _size(shape, reduction), splits, _size(shape, output) // splits),
    )


class Layout(NamedTuple):
    """The shape and axes in which the rule computes one parameter.

    Attributes:
        shape: The shape that the rule computes in.
        axes: The axes that are factored, None for rank < 2.
        view: The matrix view; None if the parameter is used as stored.
    """

    shape: tuple[int, ...]
    axes: Axes | None
    view: MatrixView | None = None

    def enter(self, array: Array) -> Array:
        """Reshapes an array of the parameter's own shape to `shape`."""
        return array if self.view is None else self.view.to_matrices(array)

    def leave(self, array: Array) -> Array:
        """Inverts `enter`."""
        return array if self.view is None else self.view.from_matrices(array)


def make_layout(
    shape: Sequence[int], numbers: DimensionNumbers | MuonDimensionNumbers | None = None
) -> Layout:
    """Makes the layout of a shape; without numbers, the shape as stored, as in the reference."""
    if numbers is None:
        return Layout(tuple(shape), make_axes(shape))
    view = make_view(shape, numbers)
    return Layout(view.shape, make_axes(view.shape, first=1), view)


def _size(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes)
