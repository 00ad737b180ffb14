"""The three passes by Numba's kernels (`numba_kernels`), on a CPU.

A piece of work is some rows of one matrix. Pieces are independent, and several threads work on them
(`_threads`); sums are taken piece by piece in a fixed order, so that a run repeats exactly on any number
of threads. Numba comes with `celo2[cpu]`; nothing else imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from celo2.constants import CLIPPED_GRAD, GRAD_CLIP, RSQRT_EPS
from celo2.torch import _threads, kernel_inputs, numba_kernels
from celo2.torch.features import Inputs
from celo2.torch.network import Network
from celo2.torch.passes import Passes, Units

__all__ = ["PIECE_SIZE", "make_passes"]

PIECE_SIZE = 1 << 16  # elements of a piece, if rows are no longer: most of a millisecond in the last pass


def make_passes(network: Network, *, factored: bool) -> Passes:
    """The passes of `passes.make_passes`, for float32 tensors on a CPU.

    Args:
        network: `kernel_inputs.fits` has approved its options.
        factored: Of `passes.make_passes`.
    """
    config = network.config
    places = kernel_inputs.find_places(config, factored=factored)
    weights = [1.0 - decay for decay in (*config.initial_momentum_decays, *config.initial_rms_decays)]
    constants = np.array([GRAD_CLIP, CLIPPED_GRAD, RSQRT_EPS, *weights], np.float32)
    packed = torch.tensor(kernel_inputs.pack_numbers(network, factored=factored), dtype=torch.float32)
    first_layer = kernel_inputs.NUM_CHANNELS * kernel_inputs.UNITS

    def square_means(grad: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = kernel_inputs.batch_shape(grad)
        over_cols = np.empty((batch, rows), np.float32)
        over_rows = np.zeros((batch * _pieces(shape), cols), np.float32)
        _run(numba_kernels.square_sums, shape, _array(grad), constants, over_cols, over_rows)
        sums = torch.from_numpy(over_cols), torch.from_numpy(over_rows).view(batch, -1, cols).sum(1)
        return (sums[0] / cols).view(*grad.shape[:-1], 1), (sums[1] / rows).view(*grad.shape[:-2], 1, cols)

    def accumulate(inputs: Inputs, busy: Tensor | None) -> Tensor:
        batch, rows, cols = shape = kernel_inputs.batch_shape(inputs.grad)
        sums = np.zeros((batch * _pieces(shape), kernel_inputs.NUM_CHANNELS))
        kept = np.ones(batch, np.float32) if busy is None else busy.flatten().numpy()
        _run(numba_kernels.accumulate, shape, *_arrays(inputs), kept, constants, sums)
        squares = torch.from_numpy(sums).view(batch, -1, kernel_inputs.NUM_CHANNELS).sum(1) / (rows * cols)
        return squares[:, places].float().T.reshape(-1, *inputs.grad.shape[:-2], 1, 1)

    def direct(inputs: Inputs, scales: Tensor, units: Units) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = kernel_inputs.batch_shape(inputs.grad)
        every = scales.new_zeros(batch, kernel_inputs.NUM_CHANNELS, 1)
        every[:, places, 0] = scales.reshape(len(places), batch).T
        numbers = packed.repeat(batch, 1)
        numbers[:, :first_layer] *= every.expand(-1, -1, kernel_inputs.UNITS).flatten(1)
        sides = [kernel_inputs.pack_vectors(unit).numpy() for unit in units]
        direction = inputs.grad.new_empty(inputs.grad.shape)
        sums = np.zeros(batch * _pieces(shape))
        arrays = (*_arrays(inputs), *sides, constants, numbers.numpy(), _array(direction), sums)
        _run(numba_kernels.direct, shape, *arrays)
        mean_square = torch.from_numpy(sums).view(batch, -1).sum(1) / (rows * cols)
        return direction, mean_square.float().view(*direction.shape[:-2], 1, 1)

    return Passes(square_means, accumulate, direct)


def _array(tensor: Tensor) -> np.ndarray:
    """`(batch, rows, cols)`; a view of what is contiguous, as all that is written to must be."""
    return tensor.detach().contiguous().view(-1, *tensor.shape[-2:]).numpy()


def _arrays(inputs: Inputs) -> list[np.ndarray]:
    """In the kernels' order."""
    sides = [kernel_inputs.pack_vectors(torch.stack(side)) for side in zip(*inputs.factors, strict=True)]
    full = (inputs.grad, inputs.param, *inputs.accumulators.momentum, *inputs.accumulators.rms)
    return [*map(_array, full), *(side.numpy() for side in sides)]


def _rows(shape: tuple[int, int, int]) -> int:
    """Of a piece."""
    return min(max(PIECE_SIZE // shape[2], 1), shape[1])


def _pieces(shape: tuple[int, int, int]) -> int:
    """Of each matrix."""
    return -(-shape[1] // _rows(shape))


def _run(kernel: Callable[..., None], shape: tuple[int, int, int], *arguments: Any) -> None:
    """Calls a kernel for every piece: with its number, its matrix, its rows."""
    count, step = _pieces(shape), _rows(shape)

    def work(number: int) -> None:
        matrix, place = divmod(number, count)
        first = place * step
        kernel(*arguments, number, matrix, first, min(first + step, shape[1]))

    _threads.run(lambda: work, shape[0] * count)
