"""The rule on a large matrix as GPU kernels: three passes over memory, nothing stored in between.

Source: arXiv 2602.19142, section 3, as in `step.py`; the formulas are those of `accumulators`,
`features` and `mlp`, asked for on one block at a time.

    pass 1   g                 → row and column sums of g²                                4 bytes
    pass 2   g, p, m, v        → m, v in place; sums of squares of every full channel    40 bytes
    pass 3   g, p, m, v        → direction; sum of its squares                           28 bytes

per parameter, with three momenta, one second moment and float32 throughout; the application of the
step, left to the caller, moves another 12. What depends on whole rows and columns (factored moments,
their factors, what they add to the first layer) is computed between the passes by XLA, on vectors.

The kernels are written in Pallas and lowered to Triton. Each program works on one block of one
matrix; a block that reaches over the edge is masked. Sums over the matrix are sums of one partial sum
for each block, always added in the same order, so that a run repeats exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl

from celo2.config import RuleConfig
from celo2.jax import accumulators as accumulators_lib
from celo2.jax import features, mlp
from celo2.jax.accumulators import Accumulators
from celo2.jax.blocks import (
    Block,
    Ref,
    call,
    find_edges,
    fused_multiply_add,
    make_partial_sums,
    make_spec,
    read,
    sum_of_squares,
    write,
)
from celo2.jax.dimensions import Axes

__all__ = ["BLOCK", "SUMS_BLOCK", "compute"]


BLOCK = Block(16, 64, 8)  # four elements a thread: their hidden units fit in 128 registers
SUMS_BLOCK = Block(64, 64, 4)  # of the first pass, which writes a partial sum for each row and column


class _Inputs(NamedTuple):
    """What the features of a block depend on, as arrays `(batch, rows, cols)` or references to blocks."""

    grad: Any
    param: Any
    momentum: tuple[Any, ...]
    rms: tuple[Any, ...]
    factors: tuple[tuple[Any, ...], ...]  # `features.compute_factors`: vectors


def compute(
    weights: Mapping[str, Any],
    grad: Array,
    param: Array,
    accumulators: Accumulators,
    *,
    axes: Axes,
    config: RuleConfig,
    block: Block = BLOCK,
    interpret: bool = False,
) -> tuple[Array, Array, Accumulators]:
    """The network's direction for one array of rank ≥ 2, and its new accumulators.

    Args:
        weights: The finished network as NumPy arrays; they become constants of the kernel.
        grad: Shape `(..., rows, cols)`, not clipped, of any floating dtype.
        param: The parameter, of the same shape.
        accumulators: Of the steps before, float32.
        axes: The factored axes, which must be the last two.
        config: The options, which `implementation.fits` must have approved.
        block: Of the second and third pass.
        interpret: Runs the kernels as ordinary JAX operations, on any backend.

    Returns:
        The direction, not normalised; its mean square over the last two axes, these kept with length
        1; the accumulators.
    """
    rows, cols = grad.shape[-2:]
    shape = (math.prod(grad.shape[:-2]), rows, cols)
    enter, leave = partial(_to_rank_3, shape=shape), partial(_from_rank_3, shape=grad.shape)
    axes = Axes(axes.small - grad.ndim + 3, axes.large - grad.ndim + 3)
    grad, param, old = jax.tree.map(enter, (grad, param, accumulators))
    run = partial(call, shape=shape, interpret=interpret)

    over_cols, over_rows = _square_means(run, grad)
    row_mean, col_mean = (over_cols, over_rows) if axes.large == 2 else (over_rows, over_cols)
    old = accumulators_lib.update_factored(old, row_mean, col_mean, config)
    factors = features.compute_factors(old.row, old.col, axes)

    inputs = _Inputs(grad, param, old.momentum, old.rms, factors)
    momentum, rms, sums = _accumulate(run, inputs, config, block)
    new = old._replace(momentum=momentum, rms=rms)
    channel_scales = mlp.normalizer(sums / (rows * cols))
    units = _vector_units(weights, new, factors, axes, config)
    inputs = inputs._replace(momentum=momentum, rms=rms)
    direction, square = _direct(run, inputs, channel_scales, units, weights, config, block)
    mean_square = square[..., None] / (rows * cols)
    return leave(direction), leave(mean_square), jax.tree.map(leave, new)


def _square_means(run: partial[Any], grad: Array) -> tuple[Array, Array]:
    """Means of the squared, clipped gradient over the columns `(batch, rows, 1)` and the rows."""
    batch, rows, cols = grad.shape
    num_rows, num_cols = pl.cdiv(rows, SUMS_BLOCK.rows), pl.cdiv(cols, SUMS_BLOCK.cols)

    def kernel(grad_ref: Ref, row_ref: Ref, col_ref: Ref) -> None:
        edges = find_edges(rows, cols, SUMS_BLOCK)
        grad = _clip(read(grad_ref, edges))
        square = grad * grad
        write(row_ref, jnp.sum(square, axis=1, keepdims=True), edges)
        write(col_ref, jnp.sum(square, axis=0, keepdims=True), edges)

    partial_rows = (
        jax.ShapeDtypeStruct((batch, num_cols, rows, 1), jnp.float32),
        pl.BlockSpec((None, None, SUMS_BLOCK.rows, 1), lambda b, i, j: (b, j, i, 0)),
    )
    partial_cols = (
        jax.ShapeDtypeStruct((batch, num_rows, 1, cols), jnp.float32),
        pl.BlockSpec((None, None, 1, SUMS_BLOCK.cols), lambda b, i, j: (b, i, 0, j)),
    )
    by_row, by_col = run(kernel, (grad,), (partial_rows, partial_cols), block=SUMS_BLOCK)
    return jnp.sum(by_row, axis=1) / cols, jnp.sum(by_col, axis=1) / rows


def _accumulate(
    run: partial[Any], inputs: _Inputs, config: RuleConfig, block: Block
) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
    """New momenta and second moments, in place; sums of squares of all channels `(batch, channels)`."""
    shape = inputs.grad.shape
    num_channels = sum(config.num_channels(feature) for feature in _full_features(config))

    def kernel(refs: _Inputs, momentum_refs: tuple[Ref, ...], rms_refs: tuple[Ref, ...], sums: Ref) -> None:
        edges = find_edges(shape[1], shape[2], block)
        known: _Inputs = jax.tree.map(lambda ref: read(ref, edges), refs)
        grad = _clip(known.grad)
        full = accumulators_lib.update_full(_full(known), grad, config)
        groups = _features(known._replace(grad=grad, momentum=full.momentum, rms=full.rms), config)
        for ref, value in zip((*momentum_refs, *rms_refs), (*full.momentum, *full.rms), strict=True):
            write(ref, value, edges)
        for index, channel in enumerate(itertools.chain.from_iterable(groups.values())):
            sums[index] = sum_of_squares(channel, edges)

    full = (jax.ShapeDtypeStruct(shape, jnp.float32), make_spec(shape, block))
    num_momenta, num_rms = len(inputs.momentum), len(inputs.rms)
    momentum, rms, sums = run(
        kernel,
        (inputs,),
        ((full,) * num_momenta, (full,) * num_rms, make_partial_sums(shape, num_channels, block)),
        block=block,
        aliases={2 + i: i for i in range(num_momenta + num_rms)},  # after the gradient and the parameter
    )
    return momentum, rms, jnp.sum(sums, axis=(1, 2))


def _direct(
    run: partial[Any],
    inputs: _Inputs,
    channel_scales: Array,
    units: list[Array],
    weights: Mapping[str, Any],
    config: RuleConfig,
    block: Block,
) -> tuple[Array, Array]:
    """The direction, and the sum of its squares `(batch, 1)`."""
    shape = inputs.grad.shape
    add = mlp.multiply_add if run.keywords["interpret"] else fused_multiply_add

    def kernel(refs: _Inputs, scales: Ref, unit_refs: list[Ref], direction_ref: Ref, square: Ref) -> None:
        edges = find_edges(shape[1], shape[2], block)
        known: _Inputs = jax.tree.map(lambda ref: read(ref, edges), refs)
        groups = _features(known._replace(grad=_clip(known.grad)), config)
        count = itertools.count()
        input_scales = {name: tuple(scales[next(count)] for _ in group) for name, group in groups.items()}
        start = [
            sum((read(ref.at[np.int32(j)], edges) for ref in unit_refs), start=weights["b0"][j].item())
            for j in range(config.ff_hidden_size)
        ]
        direction, _ = mlp.compute(groups, input_scales, weights, config, start=start, add=add)
        direction = direction + _not_finite(known, config)
        write(direction_ref, direction, edges)
        square[0] = sum_of_squares(direction, edges)

    direction, squares = run(
        kernel,
        (inputs, channel_scales, units),
        (
            (jax.ShapeDtypeStruct(shape, jnp.float32), make_spec(shape, block)),
            make_partial_sums(shape, 1, block),
        ),
        block=block,
    )
    return direction, jnp.sum(squares, axis=(1, 2))


def _features(inputs: _Inputs, config: RuleConfig) -> features.FeatureGroups:
    """The full channels of a block; groups of vectors are empty."""
    grad, param = inputs.grad, inputs.param
    return features.compute(grad, param, _full(inputs), None, config, factors=inputs.factors)


def _full(inputs: _Inputs) -> Accumulators:
    return Accumulators(inputs.momentum, inputs.rms, row=(), col=())


def _clip(grad: Array) -> Array:
    """Clips as `step.update` does; a comparison in Triton would turn NaN into the bound."""
    clipped = jnp.clip(grad, -accumulators_lib.GRAD_CLIP, accumulators_lib.GRAD_CLIP)
    return jnp.where(jnp.isnan(grad), grad, clipped)


def _not_finite(inputs: _Inputs, config: RuleConfig) -> Array:
    """0 where all inputs are finite, else NaN, which ReLU in Triton would turn into 0."""
    zero = 0.0 * inputs.momentum[0]
    for values in (*inputs.momentum[1:], *inputs.rms, *((inputs.param,) if config.with_p else ())):
        zero = zero + 0.0 * values
    return zero


def _vector_units(
    weights: Mapping[str, Any],
    accumulators: Accumulators,
    factors: features.Factors,
    axes: Axes,
    config: RuleConfig,
) -> list[Array]:
    """What the row and column channels add to the first layer: `(units, batch, rows, 1)` and the columns'."""
    full = accumulators.momentum[0]  # in place of gradient and parameter: only vectors are read
    groups = features.compute(full, full, accumulators, axes, config, factors=factors)
    vectors = {n: tuple(c for c in group if c.shape != full.shape) for n, group in groups.items()}
    return mlp.vector_units(vectors, mlp.input_scales(vectors), weights)


def _full_features(config: RuleConfig) -> list[Any]:
    vectors = ("row", "col", "rsqrt_row", "rsqrt_col")
    return [feature for _, feature in config.feature_groups(2) if feature.name not in vectors]


def _to_rank_3(array: Array, shape: tuple[int, int, int]) -> Array:
    return array.reshape(shape[0], *array.shape[-2:])


def _from_rank_3(array: Array, shape: tuple[int, ...]) -> Array:
    return array.reshape(*shape[:-2], *array.shape[-2:])
