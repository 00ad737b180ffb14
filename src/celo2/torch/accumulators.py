"""The accumulators of the rule: three momenta, one second moment, factored second moments.

Source: arXiv 2602.19142, section 3; the factored moments are Adafactor's (arXiv 1804.04235, eq. 4).
With `g` the clipped gradient and `β` a decay, and without bias correction unless requested:

    momentum  m ← β m + (1-β) g
    rms       v ← β v + (1-β) g²
    row       r ← β r + (1-β) mean(g² + 1e-30, axis = the largest)
    col       c ← β c + (1-β) mean(g² + 1e-30, axis = the second largest)

A parameter of rank < 2 is not factored: its `row` is the full second moment, and it has no `col`.

With `Network.skip_zero_gradients`, `busy` marks the matrices that have a gradient; the accumulators of the
others are unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import FACTORED_EPS
from celo2.torch.dimensions import Axes, Layout


class Accumulators(NamedTuple):
    """The accumulators of one tensor, or of several stacked along a leading axis; one entry per decay.

    Attributes:
        momentum: Tensors of the layout's shape.
        rms: Tensors of the layout's shape.
        row: The layout's shape with the largest axis reduced to 1; the full shape for rank < 2.
        col: The layout's shape with the second largest axis reduced to 1; none for rank < 2.
    """

    momentum: tuple[Tensor, ...]
    rms: tuple[Tensor, ...]
    row: tuple[Tensor, ...]
    col: tuple[Tensor, ...]


def row_shape(layout: Layout) -> tuple[int, ...]:
    """Returns the shape of a row accumulator."""
    return layout.shape if layout.axes is None else _reduced(layout.shape, layout.axes.large)


def col_shape(layout: Layout) -> tuple[int, ...] | None:
    """Returns the shape of a column accumulator, None for rank < 2."""
    return None if layout.axes is None else _reduced(layout.shape, layout.axes.small)


def find_busy(squares: Tensor) -> Tensor:
    """Returns 1 for each matrix that has a gradient and 0 where all squares are zero, `(..., 1, 1)`.

    Args:
        squares: The squared gradient, or sums of some of the squares, with any shape `(..., rows, cols)`.
    """
    return (squares.sum((-2, -1), keepdim=True) != 0).to(squares.dtype)


def update(
    accumulators: Accumulators,
    grad: Tensor,
    axes: Axes | None,
    config: RuleConfig,
    *,
    skip_zero: bool = False,
) -> Tensor | None:
    """Updates every accumulator by one step, in place.

    Args:
        accumulators: The accumulators before this update; changed in place.
        grad: The clipped gradient, in the accumulators' dtype.
        axes: The factored axes, None for rank < 2.
        config: The decays.
        skip_zero: Whether matrices without a gradient keep their accumulators.

    Returns:
        The matrices that have a gradient (`find_busy`); None: all were updated.
    """
    square = grad * grad
    busy = find_busy(square) if skip_zero else None
    if axes is None:
        update_factored(accumulators, square, None, None, config, busy)
    else:
        row_mean, col_mean = (square.mean(axis, keepdim=True) for axis in (axes.large, axes.small))
        update_factored(accumulators, row_mean, col_mean, axes, config, busy)
    update_full(accumulators, grad, config, busy)
    return busy


def update_factored(
    accumulators: Accumulators,
    row_mean: Tensor,
    col_mean: Tensor | None,
    axes: Axes | None,
    config: RuleConfig,
    busy: Tensor | None = None,
) -> None:
    """Updates `row` and `col` by one step, in place, from the means of the squared gradient."""
    decays = config.initial_adafactor_decays
    row_busy = col_busy = busy
    if (
        busy is not None and axes is not None
    ):  # where matrices share a mean, one that has a gradient is enough
        row_busy, col_busy = (busy.amax(axis, keepdim=True) for axis in (axes.large, axes.small))
    _decay_all(accumulators.row, row_mean + FACTORED_EPS, decays, row_busy)
    if col_mean is not None:
        _decay_all(accumulators.col, col_mean + FACTORED_EPS, decays, col_busy)


def update_full(
    accumulators: Accumulators, grad: Tensor, config: RuleConfig, busy: Tensor | None = None
) -> None:
    """Updates momentum and rms by one step, in place; tensors may be blocks of larger ones."""
    _decay_all(accumulators.momentum, grad, config.initial_momentum_decays, busy)
    _decay_all(accumulators.rms, grad * grad, config.initial_rms_decays, busy)


def unbias(accumulators: Accumulators, count: Tensor, config: RuleConfig) -> Accumulators:
    """Divides each accumulator by `1 - β^count`, into new tensors.

    Args:
        accumulators: Stacked or not.
        count: The number of updates so far, ≥ 1, broadcastable to the accumulators.
        config: The decays.
    """

    def divide(values: Sequence[Tensor], decays: Sequence[float]) -> tuple[Tensor, ...]:
        return tuple(
            value / (1.0 - torch.pow(decay, count.to(value.dtype)))
            for value, decay in zip(values, decays, strict=True)
        )

    factored = config.initial_adafactor_decays
    return Accumulators(
        divide(accumulators.momentum, config.initial_momentum_decays),
        divide(accumulators.rms, config.initial_rms_decays),
        divide(accumulators.row, factored),
        divide(accumulators.col, factored) if accumulators.col else (),
    )


def _decay_all(
    values: Sequence[Tensor], new: Tensor, decays: Sequence[float], busy: Tensor | None = None
) -> None:
    for value, decay in zip(values, decays, strict=True):
        value.lerp_(new, (1.0 - decay) if busy is None else (1.0 - decay) * busy)


def _reduced(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    place = axis % len(shape)
    return (*shape[:place], 1, *shape[place + 1 :])
