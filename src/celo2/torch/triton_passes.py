"""The three passes by Triton's kernels (`triton_kernels`), on a CUDA device or in Triton's interpreter.

Nothing waits for the device, so that a step can be captured in a CUDA graph. Triton comes with PyTorch
for CUDA on Linux; nothing else imports this module.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from celo2.torch import kernel_inputs, triton_kernels
from celo2.torch.features import Inputs
from celo2.torch.network import Network
from celo2.torch.passes import Passes, Units

__all__ = ["BLOCK", "SUMS_BLOCK", "make_passes"]

BLOCK = (16, 64)  # rows and columns of the second and third pass: four elements a thread
SUMS_BLOCK = (64, 64)  # of the first pass, which writes a partial sum for each row and column
WARPS, SUMS_WARPS = 8, 4


def make_passes(network: Network, *, factored: bool) -> Passes:
    """The passes of `passes.make_passes`, for gradients and parameters of any dtype but float64.

    Args:
        network: Its numbers become constants of the kernels; `kernel_inputs.fits` has approved its options.
        factored: Of `passes.make_passes`.
    """
    places = kernel_inputs.find_places(network.config, factored=factored)
    numbers = kernel_inputs.pack_numbers(network, factored=factored)

    def square_means(grad: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = kernel_inputs.batch_shape(grad)
        row_blocks, col_blocks = grid = _grid(shape, SUMS_BLOCK)
        over_cols = _new(grad, batch, col_blocks, rows)
        over_rows = _new(grad, batch, row_blocks, cols)
        arguments = (grad.contiguous(), over_cols, over_rows, rows, cols, *SUMS_BLOCK)
        _launch(triton_kernels.square_sums, (batch, *grid), arguments, SUMS_WARPS)
        means = over_cols.sum(1) / cols, over_rows.sum(1) / rows
        return means[0].view(*grad.shape[:-1], 1), means[1].view(*grad.shape[:-2], 1, cols)

    def accumulate(inputs: Inputs, busy: Tensor | None) -> Tensor:
        batch, rows, cols = shape = kernel_inputs.batch_shape(inputs.grad)
        grid = _grid(shape, BLOCK)
        sums = _new(inputs.grad, batch, math.prod(grid), kernel_inputs.NUM_CHANNELS)
        config = network.config
        weights = [1.0 - decay for decay in (*config.initial_momentum_decays, *config.initial_rms_decays)]
        kept = _new(inputs.grad, batch).fill_(1.0) if busy is None else busy.flatten()
        arguments = (*_tensors(inputs), kept, sums, rows, cols, *weights, *BLOCK)
        _launch(triton_kernels.accumulate, (batch, *grid), arguments, WARPS)
        squares = sums.sum(1)[:, places] / (rows * cols)
        return squares.T.reshape(-1, *inputs.grad.shape[:-2], 1, 1)

    def direct(inputs: Inputs, scales: Tensor, units: Units) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = kernel_inputs.batch_shape(inputs.grad)
        grid = _grid(shape, BLOCK)
        every = scales.new_zeros(batch, kernel_inputs.NUM_CHANNELS)
        every[:, places] = scales.reshape(len(places), batch).T
        direction = _new(inputs.grad, *inputs.grad.shape)
        sums = _new(inputs.grad, batch, math.prod(grid))
        tensors = (*_tensors(inputs), every, *map(kernel_inputs.pack_vectors, units), direction, sums)
        _launch(triton_kernels.direct, (batch, *grid), (*tensors, rows, cols, numbers, *BLOCK), WARPS)
        mean_square = sums.sum(1) / (rows * cols)
        return direction, mean_square.view(*direction.shape[:-2], 1, 1)

    return Passes(square_means, accumulate, direct)


def _tensors(inputs: Inputs) -> list[Tensor]:
    """In the kernels' order; what is written to must be contiguous already."""
    sides = [kernel_inputs.pack_vectors(torch.stack(side)) for side in zip(*inputs.factors, strict=True)]
    full = (inputs.grad.contiguous(), inputs.param.contiguous())
    return [*full, *inputs.accumulators.momentum, *inputs.accumulators.rms, *sides]


def _grid(shape: tuple[int, int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[1] // block[0]), -(-shape[2] // block[1])


def _new(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], warps: int) -> None:
    """On the tensors' device and its current stream."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, num_warps=warps)
