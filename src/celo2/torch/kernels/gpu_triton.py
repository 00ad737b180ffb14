"""The three passes as Triton kernels, for a CUDA device or Triton's interpreter: launch and kernels.

Nothing waits for the device, so a step can be captured in a CUDA graph. Triton comes with PyTorch
for CUDA on Linux; nothing else imports this module.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from celo2.constants import CLIPPED_GRAD as _CLIPPED_GRAD
from celo2.constants import GRAD_CLIP as _GRAD_CLIP
from celo2.constants import RSQRT_EPS as _RSQRT_EPS
from celo2.torch.features import Inputs
from celo2.torch.kernels import interface
from celo2.torch.three_pass import Passes, Units
from celo2.torch.weights import Network

BLOCK = (16, 64)  # rows and columns of the second and third pass: four elements per thread
SUMS_BLOCK = (64, 64)  # the same for the first pass, which writes a partial sum for each row and column
WARPS, SUMS_WARPS = 8, 4


def make_passes(network: Network, *, factored: bool) -> Passes:
    """Makes the passes of `three_pass.make_passes` for gradients and parameters of any dtype but float64.

    Args:
        network: Weights, which become constants of the kernels, and options that satisfy
            `interface.fits`.
        factored: As in `three_pass.make_passes`.
    """
    config = network.config
    places = interface.find_places(config, factored=factored)
    on = tuple(channel in places for channel in range(interface.NUM_CHANNELS))
    numbers = tuple(interface.pack_weights(network, factored=factored).flatten().tolist())
    constants = (numbers, interface.count_units(config), on, interface.has_vectors(config))

    def square_means(grad: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = interface.batch_shape(grad)
        row_blocks, col_blocks = grid = _grid(shape, SUMS_BLOCK)
        over_cols = _new(grad, batch, col_blocks, rows)
        over_rows = _new(grad, batch, row_blocks, cols)
        arguments = (grad.contiguous(), over_cols, over_rows, rows, cols, *SUMS_BLOCK)
        _launch(_square_sums_kernel, (batch, *grid), arguments, SUMS_WARPS)
        means = over_cols.sum(1) / cols, over_rows.sum(1) / rows
        return means[0].view(*grad.shape[:-1], 1), means[1].view(*grad.shape[:-2], 1, cols)

    def accumulate(inputs: Inputs, busy: Tensor | None) -> Tensor:
        batch, rows, cols = shape = interface.batch_shape(inputs.grad)
        grid = _grid(shape, BLOCK)
        sums = _new(inputs.grad, batch, math.prod(grid), interface.NUM_CHANNELS)
        weights = [1.0 - decay for decay in (*config.initial_momentum_decays, *config.initial_rms_decays)]
        kept = _new(inputs.grad, batch).fill_(1.0) if busy is None else busy.flatten()
        arguments = (*_tensors(inputs), kept, sums, rows, cols, *weights, on, *BLOCK)
        _launch(_accumulate_kernel, (batch, *grid), arguments, WARPS)
        squares = sums.sum(1)[:, places] / (rows * cols)
        return squares.T.reshape(-1, *inputs.grad.shape[:-2], 1, 1)

    def direct(inputs: Inputs, scales: Tensor, units: Units) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = interface.batch_shape(inputs.grad)
        grid = _grid(shape, BLOCK)
        every = scales.new_zeros(batch, interface.NUM_CHANNELS)
        every[:, places] = scales.reshape(len(places), batch).T
        direction = _new(inputs.grad, *inputs.grad.shape)
        sums = _new(inputs.grad, batch, math.prod(grid))
        sides = [interface.pack_units(unit, config) for unit in units]
        tensors = (*_tensors(inputs), every, *sides, direction, sums)
        _launch(_direct_kernel, (batch, *grid), (*tensors, rows, cols, *constants, *BLOCK), WARPS)
        mean_square = sums.sum(1) / (rows * cols)
        return direction, mean_square.view(*direction.shape[:-2], 1, 1)

    return Passes(square_means, accumulate, direct)


def _tensors(inputs: Inputs) -> list[Tensor]:
    """Returns the inputs in the kernels' order; tensors written in place must already be contiguous."""
    sides = [interface.pack_vectors(torch.stack(side)) for side in zip(*inputs.factors, strict=True)]
    full = (inputs.grad.contiguous(), inputs.param.contiguous())
    return [*full, *inputs.accumulators.momentum, *inputs.accumulators.rms, *sides]


def _grid(shape: tuple[int, int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[1] // block[0]), -(-shape[2] // block[1])


def _new(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], warps: int) -> None:
    """Launches a kernel on the tensors' device and its current stream."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, num_warps=warps)


# pyright: reportGeneralTypeIssues=false
# Triton types jitted functions as never returning, since they can only be called from kernels.


GRAD_CLIP = tl.constexpr(_GRAD_CLIP)
CLIPPED_GRAD = tl.constexpr(_CLIPPED_GRAD)
RSQRT_EPS = tl.constexpr(_RSQRT_EPS)


@triton.jit
def _clamp(x, bound):
    return tl.clamp(x, -bound, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _place(rows, cols, R: tl.constexpr, C: tl.constexpr):
    """Returns the rows `(R, 1)`, columns `(1, C)`, matrix offsets and mask of the program's block.

    A tensor may have 2³¹ or more elements, so offsets are products with an int64 matrix index. Rows
    and columns are at most `dispatch.LARGEST_SIDE`; their products with a constant stay in int32.
    """
    i = tl.program_id(1) * R + tl.arange(0, R)[:, None]
    j = tl.program_id(2) * C + tl.arange(0, C)[None, :]
    first = tl.program_id(0).to(tl.int64) * rows
    return i, j, (first + i) * cols + j, (i < rows) & (j < cols)


@triton.jit
def _number():
    """Returns the index of this program among all (fewer than 2³¹), as int64 for its products."""
    block = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    return (block * tl.num_programs(2) + tl.program_id(2)).to(tl.int64)


@triton.jit
def _square_sums_kernel(grad, over_cols, over_rows, rows, cols, R: tl.constexpr, C: tl.constexpr):
    """Computes partial sums of clipped squares, `(batch, col_blocks, rows)`, `(batch, row_blocks, cols)`."""
    i, j, at, inside = _place(rows, cols, R, C)
    g = _clamp(tl.load(grad + at, mask=inside, other=0.0).to(tl.float32), GRAD_CLIP)
    batch, row_block, col_block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    to_rows = (batch * tl.num_programs(2) + col_block) * rows + i
    to_cols = (batch * tl.num_programs(1) + row_block) * cols + j
    tl.store(over_cols + to_rows, tl.sum(g * g, axis=1)[:, None], mask=i < rows)
    tl.store(over_rows + to_cols, tl.sum(g * g, axis=0)[None, :], mask=j < cols)


@triton.jit
def _side(vectors, index: tl.constexpr, at, size, inside):
    """Loads one of the vectors, `(batch, number, size)`, along a side of the block."""
    return tl.load(vectors + index * size + at, mask=inside, other=0.0)


@triton.jit
def _factor(row_factors, col_factors, index: tl.constexpr, i, j, rows, cols):
    batch = tl.program_id(0).to(tl.int64)
    row = _side(row_factors, index, batch * 3 * rows + i, rows, i < rows)
    return row * _side(col_factors, index, batch * 3 * cols + j, cols, j < cols)


@triton.jit
def _store_sum(sums, channel: tl.constexpr, x, inside, ON: tl.constexpr):
    if ON[channel]:
        tl.store(sums + _number() * 18 + channel, tl.sum(tl.where(inside, x * x, 0.0)))


@triton.jit
def _accumulate_kernel(
    grad, param, momentum_0, momentum_1, momentum_2, rms, row_factors, col_factors, busy, sums, rows, cols,
    weight_0, weight_1, weight_2, weight_rms, ON: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Updates momenta and rms in place, and sums squares of each block's channels, `(blocks, channels)`.

    Sums of channels that are not `ON` are not written; nothing that only they need is read or computed.

    New values have the weight 1 - β, multiplied by `busy`, `(batch,)`.
    """
    own_busy = tl.load(busy + tl.program_id(0))
    i, j, at, inside = _place(rows, cols, R, C)
    g = _clamp(tl.load(grad + at, mask=inside, other=0.0).to(tl.float32), GRAD_CLIP)
    p = tl.load(param + at, mask=inside, other=0.0).to(tl.float32)
    m0 = tl.load(momentum_0 + at, mask=inside, other=0.0)
    m1 = tl.load(momentum_1 + at, mask=inside, other=0.0)
    m2 = tl.load(momentum_2 + at, mask=inside, other=0.0)
    v = tl.load(rms + at, mask=inside, other=0.0)
    m0 += weight_0 * own_busy * (g - m0)
    m1 += weight_1 * own_busy * (g - m1)
    m2 += weight_2 * own_busy * (g - m2)
    v += weight_rms * own_busy * (g * g - v)
    tl.store(momentum_0 + at, m0, mask=inside)
    tl.store(momentum_1 + at, m1, mask=inside)
    tl.store(momentum_2 + at, m2, mask=inside)
    tl.store(rms + at, v, mask=inside)
    s = tl.rsqrt(v + RSQRT_EPS)
    f0 = _factor(row_factors, col_factors, 0, i, j, rows, cols)
    f1 = _factor(row_factors, col_factors, 1, i, j, rows, cols)
    f2 = _factor(row_factors, col_factors, 2, i, j, rows, cols)
    _store_sum(sums, 0, g, inside, ON)
    _store_sum(sums, 1, _clamp(g, CLIPPED_GRAD), inside, ON)
    _store_sum(sums, 2, p, inside, ON)
    _store_sum(sums, 3, m0, inside, ON)
    _store_sum(sums, 4, m1, inside, ON)
    _store_sum(sums, 5, m2, inside, ON)
    _store_sum(sums, 6, v, inside, ON)
    _store_sum(sums, 7, m0 * s, inside, ON)
    _store_sum(sums, 8, m1 * s, inside, ON)
    _store_sum(sums, 9, m2 * s, inside, ON)
    _store_sum(sums, 10, s, inside, ON)
    _store_sum(sums, 11, g * f0, inside, ON)
    _store_sum(sums, 12, g * f1, inside, ON)
    _store_sum(sums, 13, g * f2, inside, ON)
    _store_sum(sums, 14, g * s, inside, ON)
    _store_sum(sums, 15, m0 * f0, inside, ON)
    _store_sum(sums, 16, m1 * f1, inside, ON)
    _store_sum(sums, 17, m2 * f2, inside, ON)


@triton.jit
def _add(h, x, W: tl.constexpr, row: tl.constexpr, UNITS: tl.constexpr):
    """Adds an input times its row of weights to the units."""
    at: tl.constexpr = row * UNITS
    if UNITS == 2:
        return h[0] + x * W[at], h[1] + x * W[at + 1]
    else:
        return (
            h[0] + x * W[at], h[1] + x * W[at + 1], h[2] + x * W[at + 2], h[3] + x * W[at + 3],
            h[4] + x * W[at + 4], h[5] + x * W[at + 5], h[6] + x * W[at + 6], h[7] + x * W[at + 7],
        )  # fmt: skip


@triton.jit
def _channel(h, x, scales, channel: tl.constexpr, W: tl.constexpr, UNITS: tl.constexpr, ON: tl.constexpr):
    if ON[channel]:
        scale = tl.load(scales + tl.program_id(0).to(tl.int64) * 18 + channel)
        h = _add(h, x * scale, W, channel, UNITS)
    return h


@triton.jit
def _row(zero, W: tl.constexpr, row: tl.constexpr, UNITS: tl.constexpr):
    """Returns a row of weights as one block per unit."""
    at: tl.constexpr = row * UNITS
    if UNITS == 2:
        return zero + W[at], zero + W[at + 1]
    else:
        return (
            zero + W[at], zero + W[at + 1], zero + W[at + 2], zero + W[at + 3],
            zero + W[at + 4], zero + W[at + 5], zero + W[at + 6], zero + W[at + 7],
        )  # fmt: skip


@triton.jit
def _unit(row_units, col_units, index: tl.constexpr, i, j, rows, cols, UNITS: tl.constexpr):
    batch = tl.program_id(0).to(tl.int64)
    row = _side(row_units, index, batch * UNITS * rows + i, rows, i < rows)
    return row + _side(col_units, index, batch * UNITS * cols + j, cols, j < cols)


@triton.jit
def _units(r, c, i, j, rows, cols, U: tl.constexpr):
    """Returns the contributions of the vectors along rows and columns to each unit."""
    if U == 2:
        return _unit(r, c, 0, i, j, rows, cols, U), _unit(r, c, 1, i, j, rows, cols, U)
    else:
        return (
            _unit(r, c, 0, i, j, rows, cols, U), _unit(r, c, 1, i, j, rows, cols, U),
            _unit(r, c, 2, i, j, rows, cols, U), _unit(r, c, 3, i, j, rows, cols, U),
            _unit(r, c, 4, i, j, rows, cols, U), _unit(r, c, 5, i, j, rows, cols, U),
            _unit(r, c, 6, i, j, rows, cols, U), _unit(r, c, 7, i, j, rows, cols, U),
        )  # fmt: skip


@triton.jit
def _direct_kernel(
    grad, param, momentum_0, momentum_1, momentum_2, rms, row_factors, col_factors, scales, row_units,
    col_units, direction, sums, rows, cols, W: tl.constexpr, UNITS: tl.constexpr, ON: tl.constexpr,
    VECTORS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Computes the direction and its sum of squares for each block.

    `W` is `interface.pack_weights`. The units' vectors are read if there are `VECTORS`; otherwise they are
    the first layer's bias. Nothing is computed for channels that are not `ON`.
    """
    i, j, at, inside = _place(rows, cols, R, C)
    zero = tl.zeros((R, C), tl.float32)
    h = _row(zero, W, 18 + UNITS, UNITS)
    if VECTORS:
        h = _units(row_units, col_units, i, j, rows, cols, UNITS)
    g = _clamp(tl.load(grad + at, mask=inside, other=0.0).to(tl.float32), GRAD_CLIP)
    p = tl.load(param + at, mask=inside, other=0.0).to(tl.float32)
    m0 = tl.load(momentum_0 + at, mask=inside, other=0.0)
    m1 = tl.load(momentum_1 + at, mask=inside, other=0.0)
    m2 = tl.load(momentum_2 + at, mask=inside, other=0.0)
    v = tl.load(rms + at, mask=inside, other=0.0)
    s = tl.rsqrt(v + RSQRT_EPS)
    h = _channel(h, g, scales, 0, W, UNITS, ON)
    h = _channel(h, _clamp(g, CLIPPED_GRAD), scales, 1, W, UNITS, ON)
    h = _channel(h, p, scales, 2, W, UNITS, ON)
    h = _channel(h, m0, scales, 3, W, UNITS, ON)
    h = _channel(h, m1, scales, 4, W, UNITS, ON)
    h = _channel(h, m2, scales, 5, W, UNITS, ON)
    h = _channel(h, v, scales, 6, W, UNITS, ON)
    h = _channel(h, m0 * s, scales, 7, W, UNITS, ON)
    h = _channel(h, m1 * s, scales, 8, W, UNITS, ON)
    h = _channel(h, m2 * s, scales, 9, W, UNITS, ON)
    h = _channel(h, s, scales, 10, W, UNITS, ON)
    h = _channel(h, g * s, scales, 14, W, UNITS, ON)
    f = _factor(row_factors, col_factors, 0, i, j, rows, cols)
    h = _channel(h, g * f, scales, 11, W, UNITS, ON)
    h = _channel(h, m0 * f, scales, 15, W, UNITS, ON)
    f = _factor(row_factors, col_factors, 1, i, j, rows, cols)
    h = _channel(h, g * f, scales, 12, W, UNITS, ON)
    h = _channel(h, m1 * f, scales, 16, W, UNITS, ON)
    f = _factor(row_factors, col_factors, 2, i, j, rows, cols)
    h = _channel(h, g * f, scales, 13, W, UNITS, ON)
    h = _channel(h, m2 * f, scales, 17, W, UNITS, ON)
    k = _row(zero, W, 19 + UNITS, UNITS)
    for unit in tl.static_range(UNITS):
        k = _add(k, _relu(h[unit]), W, 18 + unit, UNITS)
    out = zero + W[(21 + UNITS) * UNITS]
    for unit in tl.static_range(UNITS):
        out += _relu(k[unit]) * W[(20 + UNITS) * UNITS + unit]
    tl.store(direction + at, out, mask=inside)
    tl.store(sums + _number(), tl.sum(tl.where(inside, out * out, 0.0)))
