"""The three passes of the rule as Pallas kernels for GPUs, with no intermediate arrays.

Source: arXiv 2602.19142, section 3, as in `step.py`; the formulas are those of `accumulators`,
`features` and `mlp`, applied to one block at a time.

    pass 1   g                 → row and column sums of g²                                4 bytes
    pass 2   g, p, m, v        → m, v in place; sums of squares of every full channel    40 bytes
    pass 3   g, p, m, v        → direction; sum of its squares                           28 bytes

per parameter, with three momenta, one second moment and float32 throughout; applying the step, which is
left to the caller, moves another 12. The operations between the passes are in `three_pass.compute`.

The kernels are written in Pallas and lowered to Triton. Each program works on one block of one
matrix; blocks that extend past the edge are masked. Sums over the matrix add one partial sum per
block, always in the same order, so runs repeat exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl

from celo2.config import RuleConfig
from celo2.jax import accumulators as accumulators_lib
from celo2.jax import features, mlp
from celo2.jax.accumulators import Accumulators
from celo2.jax.features import Inputs
from celo2.jax.pallas.blocks import (
    Block,
    Edges,
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
from celo2.jax.three_pass import Passes, compute_direction

BLOCK = Block(16, 64, 8)  # four elements per thread: their hidden units fit in 128 registers
SUMS_BLOCK = Block(64, 64, 4)  # for the first pass, which writes a partial sum for each row and column


def make_passes(
    weights: Mapping[str, Any], config: RuleConfig, *, block: Block = BLOCK, interpret: bool = False
) -> Passes:
    """Makes the passes as kernels, for arrays that satisfy `dispatch.fits`.

    Args:
        weights: The network's weights as NumPy arrays, which become constants of the kernel.
        config: The options.
        block: The block of the second and third pass.
        interpret: Runs the kernels as ordinary JAX operations, on any backend.
    """
    run = partial(call, interpret=interpret)

    def square_means(grad: Array) -> tuple[Array, Array]:
        over_cols, over_rows = _square_means(run, _to_rank_3(grad))
        return _from_rank_3(over_cols, grad.shape), _from_rank_3(over_rows, grad.shape)

    def accumulate(inputs: Inputs, busy: Array | None) -> tuple[Accumulators, Array]:
        shape = inputs.grad.shape
        new, sums = _accumulate(run, jax.tree.map(_to_rank_3, inputs), busy, config, block)
        squares = (sums.T / math.prod(shape[-2:])).reshape(-1, *shape[:-2], 1, 1)
        return jax.tree.map(partial(_from_rank_3, shape=shape), new), squares

    def direct(inputs: Inputs, scales: Array, units: list[Array]) -> tuple[Array, Array]:
        shape = inputs.grad.shape
        flat = [unit.reshape(len(unit), -1, *unit.shape[-2:]) for unit in units]
        direction, sums = _direct(
            run,
            jax.tree.map(_to_rank_3, inputs),
            scales.reshape(len(scales), -1).T,
            flat,
            weights,
            config,
            block,
        )
        mean_square = sums[..., None] / math.prod(shape[-2:])
        return _from_rank_3(direction, shape), _from_rank_3(mean_square, shape)

    return Passes(square_means, accumulate, direct)


def _square_means(run: partial[Any], grad: Array) -> tuple[Array, Array]:
    """Computes means of the squared, clipped gradient over the columns `(batch, rows, 1)` and the rows."""
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
    outputs = (partial_rows, partial_cols)
    by_row, by_col = run(kernel, (grad,), outputs, shape=grad.shape, block=SUMS_BLOCK)
    return jnp.sum(by_row, axis=1) / cols, jnp.sum(by_col, axis=1) / rows


def _accumulate(
    run: partial[Any], inputs: Inputs, busy: Array | None, config: RuleConfig, block: Block
) -> tuple[Accumulators, Array]:
    """Updates momenta and second moments in place; sums squares of all channels `(batch, channels)`."""
    shape = inputs.grad.shape
    num_channels = features.count_full(config)
    flags = () if busy is None else (busy.reshape(-1, 1).astype(jnp.float32),)

    def kernel(refs: Inputs, *others: Any) -> None:
        *busy_refs, momentum_refs, rms_refs, sums = others
        edges = find_edges(shape[1], shape[2], block)
        known = _read(refs, edges)
        old = known.accumulators
        new = accumulators_lib.update_full(old, known.grad, config)
        for own_busy in busy_refs:
            new = accumulators_lib.keep_idle(old, new, own_busy[0] != 0, None)
        for ref, value in zip((*momentum_refs, *rms_refs), (*new.momentum, *new.rms), strict=True):
            write(ref, value, edges)
        channels = known._replace(accumulators=new).channels(config)
        for index, channel in enumerate(itertools.chain.from_iterable(channels.values())):
            sums[index] = sum_of_squares(channel, edges)

    full = (jax.ShapeDtypeStruct(shape, jnp.float32), make_spec(shape, block))
    num_momenta, num_rms = len(inputs.accumulators.momentum), len(inputs.accumulators.rms)
    momentum, rms, sums = run(
        kernel,
        (inputs, *flags),
        ((full,) * num_momenta, (full,) * num_rms, make_partial_sums(shape, num_channels, block)),
        shape=shape,
        block=block,
        aliases={2 + i: i for i in range(num_momenta + num_rms)},  # after the gradient and the parameter
    )
    return Accumulators(momentum, rms, (), ()), jnp.sum(sums, axis=(1, 2))


def _direct(
    run: partial[Any],
    inputs: Inputs,
    channel_scales: Array,
    units: list[Array],
    weights: Mapping[str, Any],
    config: RuleConfig,
    block: Block,
) -> tuple[Array, Array]:
    """Computes the direction and its sum of squares, `(batch, 1)`."""
    shape = inputs.grad.shape
    add = mlp.multiply_add if run.keywords["interpret"] else fused_multiply_add

    def kernel(refs: Inputs, scales: Ref, unit_refs: list[Ref], direction_ref: Ref, square: Ref) -> None:
        edges = find_edges(shape[1], shape[2], block)
        known = _read(refs, edges)
        vectors = [
            [read(ref.at[np.int32(j)], edges) for j in range(config.ff_hidden_size)] for ref in unit_refs
        ]
        direction = compute_direction(known, scales, vectors, weights, config, add)
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
        shape=shape,
        block=block,
    )
    return direction, jnp.sum(squares, axis=(1, 2))


def _read(refs: Inputs, edges: Edges) -> Inputs:
    """Reads a block of all inputs, with the gradient clipped."""
    known: Inputs = jax.tree.map(lambda ref: read(ref, edges), refs)
    return known._replace(grad=_clip(known.grad))


def _clip(grad: Array) -> Array:
    """Clips as `accumulators.clip` does; a comparison in Triton would turn NaN into the bound."""
    clipped = accumulators_lib.clip(grad)
    return jnp.where(jnp.isnan(grad), grad, clipped)


def _not_finite(inputs: Inputs, config: RuleConfig) -> Array:
    """Returns 0 where all inputs are finite and NaN elsewhere, since ReLU in Triton turns NaN into 0."""
    momentum, rms = inputs.accumulators[:2]
    zero = 0.0 * momentum[0]
    for values in (*momentum[1:], *rms, *((inputs.param,) if config.with_p else ())):
        zero = zero + 0.0 * values
    return zero


def _to_rank_3(array: Array) -> Array:
    return array.reshape(-1, *array.shape[-2:])


def _from_rank_3(array: Array, shape: tuple[int, ...]) -> Array:
    return array.reshape(*shape[:-2], *array.shape[-2:])
