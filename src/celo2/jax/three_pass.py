"""The rule on matrices in three passes over memory, with only vector operations in between.

Source: arXiv 2602.19142, section 3, as in `step.py`; the formulas are those of `accumulators`,
`features` and `mlp`.

    pass 1   g            → means of g² over rows and over columns
    pass 2   g, p, m, v   → m, v; the mean square of every channel of the matrix's shape
    pass 3   g, p, m, v   → direction; its mean square

The passes are pluggable (`Passes`): this module has the XLA version, `pallas/kernels.py` the GPU kernels.

Between the passes, the factored moments, their factors and the contributions of row and column channels to
the first layer are computed. These are stacked for matrices of one shape, so a deep network has a few small
GPU kernels instead of a few per matrix (XLA gets the matrices one by one, see `step.update_all`). The
matrices themselves are not stacked: copying six arrays in and five out would cost more than it saves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig
from celo2.jax import accumulators as accumulators_lib
from celo2.jax import features, mlp
from celo2.jax.accumulators import Accumulators, Leaf
from celo2.jax.dimensions import Axes
from celo2.jax.features import Inputs
from celo2.jax.stacking import stack


class Direction(NamedTuple):
    """The network's output for one matrix.

    Attributes:
        values: The direction, of the matrix's shape, not normalised.
        mean_square: The mean square of the values over the last two axes, which are kept with length 1.
        accumulators: The new accumulators.
        busy: The result of `accumulators.find_busy`; None: zero gradients are not skipped.
    """

    values: Array
    mean_square: Array
    accumulators: Accumulators
    busy: Array | None


class Passes(NamedTuple):
    """The three passes over matrices `(..., rows, cols)` that every JAX and PyTorch implementation provides.

    Gradients are not clipped yet. In `Inputs`, the accumulators have no row and col. Each decay has a factor
    along the rows, `(..., rows, 1)`, and one along the columns, `(..., 1, cols)`, in either order; the same
    holds for the vectors' contributions to the first layer.

    Attributes:
        square_means: Maps a gradient to the means of its clipped squares over the columns, `over_cols` of
            shape `(..., rows, 1)`, and over the rows, `over_rows` of shape `(..., 1, cols)`.
        accumulate: Maps inputs with the old momenta and second moments, and `Direction.busy`, to accumulators
            with the new ones (old where a matrix is not busy), and to the mean squares of the channels,
            `(channels, ..., 1, 1)`, in the order of `RuleConfig.feature_groups` without rows and columns.
        direct: Maps inputs with the new moments, scales of the channels, `(channels, ..., 1, 1)`, and the
            vectors' contributions to each unit of the first layer, `(units, ..., rows, 1)` and
            `(units, ..., 1, cols)`, to the direction, `(..., rows, cols)`, and its mean square,
            `(..., 1, 1)`.
    """

    square_means: Callable[[Array], tuple[Array, Array]]
    accumulate: Callable[[Inputs, Array | None], tuple[Accumulators, Array]]
    direct: Callable[[Inputs, Array, list[Array]], tuple[Array, Array]]


def covers(rank: int, axes: Axes | None, config: RuleConfig) -> bool:
    """Returns whether the passes support such an array: it must be factored over its last two axes."""
    return (
        axes is not None
        and min(axes) == rank - 2
        and config.normalize_input
        and not config.bias_correction
        and config.exp_mult == 0
    )


def compute(
    weights: Mapping[str, Any],
    matrices: Sequence[Leaf],
    passes: Passes,
    *,
    axes: Axes,
    config: RuleConfig,
    skip_zero: bool = False,
) -> list[Direction]:
    """Computes the directions and the new accumulators of matrices of one shape and dtype.

    Args:
        weights: The network's arrays by name.
        matrices: Arrays of rank ≥ 2, `(..., rows, cols)`.
        passes: The implementation of the passes.
        axes: The factored axes, the last two.
        config: Options for which `covers` holds.
        skip_zero: Whether a matrix whose gradient is exactly zero keeps its accumulators.
    """
    over_cols, over_rows = stack([passes.square_means(matrix.grad) for matrix in matrices])
    means = (over_cols, over_rows) if axes.large > axes.small else (over_rows, over_cols)
    olds = stack([matrix.accumulators._replace(momentum=(), rms=()) for matrix in matrices])
    vectors = jax.vmap(partial(accumulators_lib.update_factored, config=config))(olds, *means)
    busy: Sequence[Array | None] = [None] * len(matrices)
    if skip_zero:
        together = accumulators_lib.find_busy(over_cols)
        vectors = jax.vmap(partial(accumulators_lib.keep_idle, axes=axes))(olds, vectors, together)
        busy = list(together)
    factors = jax.vmap(partial(features.compute_factors, axes=axes))(vectors.row, vectors.col)

    inputs = [
        Inputs(grad, param, old._replace(row=(), col=()), _pick(factors, index))
        for index, (grad, param, old) in enumerate(matrices)
    ]
    moments, squares = zip(*map(passes.accumulate, inputs, busy), strict=True)
    scales = mlp.normalizer(jnp.stack(squares))
    units = jax.vmap(partial(_vector_units, weights=weights, config=config))(vectors)

    directions = []
    for index, (known, updated) in enumerate(zip(inputs, moments, strict=True)):
        known = known._replace(accumulators=updated)
        values, mean_square = passes.direct(known, scales[index], _pick(units, index))
        new = _pick(vectors, index)._replace(momentum=updated.momentum, rms=updated.rms)
        directions.append(Direction(values, mean_square, new, busy[index]))
    return directions


def make_passes(weights: Mapping[str, Any], config: RuleConfig) -> Passes:
    """Makes XLA's passes."""

    def square_means(grad: Array) -> tuple[Array, Array]:
        square = jnp.square(accumulators_lib.clip(grad))
        return jnp.mean(square, axis=-1, keepdims=True), jnp.mean(square, axis=-2, keepdims=True)

    def accumulate(inputs: Inputs, busy: Array | None) -> tuple[Accumulators, Array]:
        inputs = inputs._replace(grad=accumulators_lib.clip(inputs.grad))
        old = inputs.accumulators
        new = accumulators_lib.update_full(old, inputs.grad, config)
        if busy is not None:
            new = accumulators_lib.keep_idle(old, new, busy, None)
        inputs = inputs._replace(accumulators=new)
        # The barrier separates these channels from the network's: computed twice, never stored.
        channels = jax.lax.optimization_barrier(inputs).channels(config)
        squares = mlp.mean_squares(list(itertools.chain.from_iterable(channels.values())))
        return new, squares

    def direct(inputs: Inputs, scales: Array, units: list[Array]) -> tuple[Array, Array]:
        inputs = inputs._replace(grad=accumulators_lib.clip(inputs.grad))
        values = compute_direction(inputs, scales, units, weights, config)
        return values, mlp.mean_square(values)

    return Passes(square_means, accumulate, direct)


def compute_direction(
    inputs: Inputs,
    scales: Any,
    units: Sequence[mlp.Units],
    weights: Mapping[str, Any],
    config: RuleConfig,
    add: Callable[[Array, Any, Any], Array] = mlp.multiply_add,
) -> Array:
    """Applies the network to a matrix or a block of it, with `scales` and `units` as in `Passes.direct`."""
    channels = inputs.channels(config)
    count = itertools.count()
    input_scales = {name: tuple(scales[next(count)] for _ in group) for name, group in channels.items()}
    direction, _ = mlp.compute(channels, input_scales, weights, config, vectors=units, add=add)
    return direction


def _vector_units(vectors: Accumulators, *, weights: Mapping[str, Any], config: RuleConfig) -> list[Array]:
    """Computes the contributions of row and column channels to the first layer."""
    groups = features.compute_vectors(vectors.row, vectors.col, config)
    return mlp.vector_units(groups, mlp.input_scales(groups), weights)


def _pick(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda array: array[index], tree)
