"""The accumulators of the rule: three momenta, one second moment, factored second moments.

Source: arXiv 2602.19142, section 3; the factored moments are Adafactor's (arXiv 1804.04235, eq. 4).

For the clipped gradient `g` and a decay `β`, without bias correction by default:

    momentum  m ← β m + (1-β) g
    rms       v ← β v + (1-β) g²
    row       r ← β r + (1-β) mean(g² + 1e-30, axis = the largest)
    col       c ← β c + (1-β) mean(g² + 1e-30, axis = the second largest)

A tensor of rank < 2 is not factored: its `row` is the full second moment, its `col` stays zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from celo2.constants import FACTORED_EPS, GRAD_CLIP
from celo2.jax.dimensions import Axes


class Decays(Protocol):
    """The decays of each kind of accumulator, numbers or traced scalars, as in `RuleConfig`."""

    @property
    def initial_momentum_decays(self) -> tuple[Any, ...]:
        """The decays of the momenta."""
        ...

    @property
    def initial_rms_decays(self) -> tuple[Any, ...]:
        """The decays of the second moments."""
        ...

    @property
    def initial_adafactor_decays(self) -> tuple[Any, ...]:
        """The decays of the row and column accumulators."""
        ...


class Accumulators(NamedTuple):
    """The accumulators of one array, with one entry per decay.

    Attributes:
        momentum: The momenta, of the parameter's shape.
        rms: The second moments, of the parameter's shape.
        row: The parameter's shape with the largest axis reduced to 1; its full shape for rank < 2.
        col: The parameter's shape with the second largest axis reduced to 1; a scalar for rank < 2.
    """

    momentum: tuple[Array, ...]
    rms: tuple[Array, ...]
    row: tuple[Array, ...]
    col: tuple[Array, ...]


class Leaf(NamedTuple):
    """One array of the parameter tree, before its update.

    Attributes:
        grad: The gradient, of any shape and floating dtype, not clipped.
        param: The parameter, of the same shape.
        accumulators: The accumulators before this update; momenta and rms may have a narrower dtype than
            row and col.
    """

    grad: Array
    param: Array
    accumulators: Accumulators


def clip(grad: Array) -> Array:
    """Clips the gradient to ±1000."""
    return jnp.clip(grad, -GRAD_CLIP, GRAD_CLIP)


def init_row(shape: tuple[int, ...], axes: Axes | None, dtype: jnp.dtype) -> Array:
    """Returns the initial row accumulator of an array of this shape."""
    return jnp.zeros(shape if axes is None else _reduced(shape, axes.large), dtype)


def init_col(shape: tuple[int, ...], axes: Axes | None, dtype: jnp.dtype) -> Array:
    """Returns the initial column accumulator of an array of this shape."""
    return jnp.zeros(() if axes is None else _reduced(shape, axes.small), dtype)


def init(shape: tuple[int, ...], axes: Axes | None, config: Decays, dtype: jnp.dtype) -> Accumulators:
    """Returns the zero-initialised accumulators of an array of this shape."""
    return Accumulators(
        tuple(jnp.zeros(shape, dtype) for _ in config.initial_momentum_decays),
        tuple(jnp.zeros(shape, dtype) for _ in config.initial_rms_decays),
        tuple(init_row(shape, axes, dtype) for _ in config.initial_adafactor_decays),
        tuple(init_col(shape, axes, dtype) for _ in config.initial_adafactor_decays),
    )


def update(accumulators: Accumulators, grad: Array, axes: Axes | None, config: Decays) -> Accumulators:
    """Updates every accumulator by one step.

    Args:
        accumulators: The accumulators before this update.
        grad: The clipped gradient, in the accumulators' dtype.
        axes: The axes that are factored, None for rank < 2.
        config: The decays.
    """
    square = grad * grad
    if axes is None:
        row_mean, col_mean = square, None
    else:
        row_mean = jnp.mean(square, axis=axes.large, keepdims=True)
        col_mean = jnp.mean(square, axis=axes.small, keepdims=True)
    return update_factored(update_full(accumulators, grad, config), row_mean, col_mean, config)


def update_full(accumulators: Accumulators, grad: Array, config: Decays) -> Accumulators:
    """Updates momentum and rms by one step, elementwise, so the arrays may be blocks."""
    return accumulators._replace(
        momentum=_decay_all(accumulators.momentum, grad, config.initial_momentum_decays),
        rms=_decay_all(accumulators.rms, grad * grad, config.initial_rms_decays),
    )


def update_factored(
    accumulators: Accumulators, row_mean: Array, col_mean: Array | None, config: Decays
) -> Accumulators:
    """Updates the row and column accumulators by one step, from the means of the squared gradient.

    Args:
        accumulators: The accumulators before this update.
        row_mean: The mean over the largest axis; the square itself for rank < 2.
        col_mean: The mean over the second largest axis; None for rank < 2.
        config: The decays.
    """
    decays = config.initial_adafactor_decays
    row = _decay_all(accumulators.row, row_mean + FACTORED_EPS, decays)
    if col_mean is None:
        return accumulators._replace(row=row)
    return accumulators._replace(row=row, col=_decay_all(accumulators.col, col_mean + FACTORED_EPS, decays))


def find_busy(squares: Array) -> Array:
    """Returns True for each matrix that has a gradient, False where all squares are zero: `(..., 1, 1)`.

    Args:
        squares: The squared gradient, or means of some of the squares, of any shape; below rank 2 the array
            counts as one matrix.
    """
    return jnp.any(squares != 0, axis=tuple(range(squares.ndim))[-2:], keepdims=True)


def keep_idle(old: Accumulators, new: Accumulators, busy: Array, axes: Axes | None) -> Accumulators:
    """Returns the new accumulators, keeping the old ones for matrices that are not busy.

    Matrices that share a row or column accumulator count as busy if any of them is.
    """

    def choose(news: tuple[Array, ...], olds: tuple[Array, ...], busy: Array) -> tuple[Array, ...]:
        return tuple(jnp.where(busy, after, before) for after, before in zip(news, olds, strict=True))

    row = col = busy
    if axes is not None:
        row, col = (jnp.any(busy, axis=axis, keepdims=True) for axis in (axes.large, axes.small))
    return Accumulators(
        choose(new.momentum, old.momentum, busy),
        choose(new.rms, old.rms, busy),
        choose(new.row, old.row, row),
        new.col if axes is None else choose(new.col, old.col, col),
    )


def unbias(accumulators: Accumulators, count: ArrayLike, config: Decays) -> Accumulators:
    """Divides each accumulator by `1 - β^count`, where `count` ≥ 1 is its number of updates."""

    def divide(values: tuple[Array, ...], decays: tuple[Any, ...]) -> tuple[Array, ...]:
        return tuple(
            value / (1.0 - decay ** jnp.asarray(count, value.dtype))
            for value, decay in zip(values, decays, strict=True)
        )

    return Accumulators(
        divide(accumulators.momentum, config.initial_momentum_decays),
        divide(accumulators.rms, config.initial_rms_decays),
        divide(accumulators.row, config.initial_adafactor_decays),
        divide(accumulators.col, config.initial_adafactor_decays),
    )


def _decay_all(values: tuple[Array, ...], new: Array, decays: tuple[Any, ...]) -> tuple[Array, ...]:
    return tuple(decay * value + (1.0 - decay) * new for value, decay in zip(values, decays, strict=True))


def _reduced(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])
