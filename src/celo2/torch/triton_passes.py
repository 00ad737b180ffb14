"""The three passes by Triton's kernels (`kernels`), on a CUDA device or in Triton's interpreter.

Nothing waits for the device, so that a step can be captured in a CUDA graph. Triton comes with PyTorch
for CUDA on Linux; nothing else imports this module.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import features, kernels
from celo2.torch.features import Inputs
from celo2.torch.network import Network
from celo2.torch.passes import Passes, Units

__all__ = ["BLOCK", "SUMS_BLOCK", "fits", "make_passes"]

BLOCK = (16, 64)  # rows and columns of the second and third pass: four elements a thread
SUMS_BLOCK = (64, 64)  # of the first pass, which writes a partial sum for each row and column
WARPS, SUMS_WARPS = 8, 4


def fits(config: RuleConfig) -> bool:
    """Whether the kernels are written for a network and accumulators of these sizes."""
    return (
        config.ff_hidden_size == kernels.UNITS
        and config.ff_hidden_layers == 2
        and config.mlp_activation == "relu"
        and len(config.initial_momentum_decays) == len(config.initial_adafactor_decays) == 3
        and len(config.initial_rms_decays) == 1
    )


def make_passes(network: Network) -> Passes:
    """The passes of `passes.make_passes`, for gradients and parameters of any dtype but float64.

    Args:
        network: Its numbers become constants of the kernels; `fits` has approved its options.
    """
    numbers, places = _numbers(network), _places(network.config)

    def square_means(grad: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = _shape(grad)
        row_blocks, col_blocks = grid = _grid(shape, SUMS_BLOCK)
        over_cols = _new(grad, batch, col_blocks, rows)
        over_rows = _new(grad, batch, row_blocks, cols)
        arguments = (grad.contiguous(), over_cols, over_rows, rows, cols, *SUMS_BLOCK)
        _launch(kernels.square_sums, (batch, *grid), arguments, SUMS_WARPS)
        means = over_cols.sum(1) / cols, over_rows.sum(1) / rows
        return means[0].view(*grad.shape[:-1], 1), means[1].view(*grad.shape[:-2], 1, cols)

    def accumulate(inputs: Inputs) -> Tensor:
        batch, rows, cols = shape = _shape(inputs.grad)
        grid = _grid(shape, BLOCK)
        sums = _new(inputs.grad, batch, math.prod(grid), kernels.NUM_CHANNELS)
        config = network.config
        weights = [1.0 - decay for decay in (*config.initial_momentum_decays, *config.initial_rms_decays)]
        arguments = (*_tensors(inputs), sums, rows, cols, *weights, *BLOCK)
        _launch(kernels.accumulate, (batch, *grid), arguments, WARPS)
        squares = sums.sum(1)[:, places] / (rows * cols)
        return squares.T.reshape(-1, *inputs.grad.shape[:-2], 1, 1)

    def direct(inputs: Inputs, scales: Tensor, units: Units) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = _shape(inputs.grad)
        grid = _grid(shape, BLOCK)
        every = scales.new_zeros(batch, kernels.NUM_CHANNELS)
        every[:, places] = scales.reshape(len(places), batch).T
        direction = _new(inputs.grad, *inputs.grad.shape)
        sums = _new(inputs.grad, batch, math.prod(grid))
        tensors = (*_tensors(inputs), every, *map(_by_matrix, units), direction, sums)
        _launch(kernels.direct, (batch, *grid), (*tensors, rows, cols, numbers, *BLOCK), WARPS)
        mean_square = sums.sum(1) / (rows * cols)
        return direction, mean_square.view(*direction.shape[:-2], 1, 1)

    return Passes(square_means, accumulate, direct)


def _numbers(network: Network) -> tuple[float, ...]:
    """The network as `kernels.direct` takes it; weights of features that are off are zero."""
    config, weights = network.config, network.numbers
    names = {feature.name: name for name, feature in config.feature_groups(2)}
    numbers: list[float] = []
    for feature, count in kernels.CHANNELS:
        rows = weights[names[feature]] if feature in names else [[0.0] * kernels.UNITS] * count
        numbers += [number for row in rows for number in row]
    numbers += [number for row in weights["w1"] for number in row] + weights["b1"]
    return (*numbers, *(row[0] for row in weights["w2"]), weights["b2"][0])


@functools.cache
def _places(config: RuleConfig) -> list[int]:
    """Where the enabled channels are among those of the kernels."""
    every = [(feature, index) for feature, count in kernels.CHANNELS for index in range(count)]
    return [every.index(channel) for channel in features.full_channels(config)]


def _tensors(inputs: Inputs) -> list[Tensor]:
    """In the kernels' order; what is written to must be contiguous already."""
    sides = [_by_matrix(torch.stack(side)) for side in zip(*inputs.factors, strict=True)]
    full = (inputs.grad.contiguous(), inputs.param.contiguous())
    return [*full, *inputs.accumulators.momentum, *inputs.accumulators.rms, *sides]


def _by_matrix(vectors: Tensor) -> Tensor:
    """Vectors `(number, ..., rows or 1, cols or 1)` → `(batch, number, size)`."""
    size = vectors.shape[-2] * vectors.shape[-1]
    return vectors.reshape(len(vectors), -1, size).transpose(0, 1).contiguous()


def _shape(tensor: Tensor) -> tuple[int, int, int]:
    rows, cols = tensor.shape[-2:]
    return math.prod(tensor.shape[:-2]), rows, cols


def _grid(shape: tuple[int, int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[1] // block[0]), -(-shape[2] // block[1])


def _new(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], warps: int) -> None:
    """On the tensors' device and its current stream."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, num_warps=warps)
