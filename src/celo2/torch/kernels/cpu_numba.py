"""The three passes as Numba kernels on a CPU: their launch and the kernels themselves.

Work is divided into pieces, some rows of one matrix each. Pieces are independent, and several threads work
on them (`threads`); sums are taken piece by piece in a fixed order, so that a run repeats exactly on any
number of threads. Numba comes with `celo2[cpu]`; nothing else imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit  # pyright: ignore[reportMissingImports]
from torch import Tensor

from celo2.constants import CLIPPED_GRAD, GRAD_CLIP, RSQRT_EPS
from celo2.torch.features import Inputs
from celo2.torch.kernels import interface, threads
from celo2.torch.three_pass import Passes, Units
from celo2.torch.weights import Network

# Elements of a piece of several rows: most of a millisecond in the last pass. No other size has been
# recorded; `benchmarks/torch_step.py --programs blocks numba --size 3m` measures a change.
PIECE_SIZE = 1 << 16


def make_passes(network: Network, *, factored: bool) -> Passes:
    """Makes the passes of `three_pass.make_passes` for float32 tensors on a CPU.

    Args:
        network: Weights and options, for which `interface.fits` holds.
        factored: As in `three_pass.make_passes`.
    """
    config = network.config
    places = interface.find_places(config, factored=factored)
    weights = [1.0 - decay for decay in (*config.initial_momentum_decays, *config.initial_rms_decays)]
    constants = np.array([GRAD_CLIP, CLIPPED_GRAD, RSQRT_EPS, *weights], np.float32)
    packed = torch.tensor(interface.pack_numbers(network, factored=factored), dtype=torch.float32)
    first_layer = interface.NUM_CHANNELS * interface.UNITS

    def square_means(grad: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = interface.batch_shape(grad)
        over_cols = np.empty((batch, rows), np.float32)
        over_rows = np.zeros((batch * _pieces(shape), cols), np.float32)
        _run(_square_sums_kernel, shape, _array(grad), constants, over_cols, over_rows)
        sums = torch.from_numpy(over_cols), torch.from_numpy(over_rows).view(batch, -1, cols).sum(1)
        return (sums[0] / cols).view(*grad.shape[:-1], 1), (sums[1] / rows).view(*grad.shape[:-2], 1, cols)

    def accumulate(inputs: Inputs, busy: Tensor | None) -> Tensor:
        batch, rows, cols = shape = interface.batch_shape(inputs.grad)
        sums = np.zeros((batch * _pieces(shape), interface.NUM_CHANNELS))
        kept = np.ones(batch, np.float32) if busy is None else busy.flatten().numpy()
        _run(_accumulate_kernel, shape, *_arrays(inputs), kept, constants, sums)
        squares = torch.from_numpy(sums).view(batch, -1, interface.NUM_CHANNELS).sum(1) / (rows * cols)
        return squares[:, places].float().T.reshape(-1, *inputs.grad.shape[:-2], 1, 1)

    def direct(inputs: Inputs, scales: Tensor, units: Units) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = interface.batch_shape(inputs.grad)
        every = scales.new_zeros(batch, interface.NUM_CHANNELS, 1)
        every[:, places, 0] = scales.reshape(len(places), batch).T
        numbers = packed.repeat(batch, 1)
        numbers[:, :first_layer] *= every.expand(-1, -1, interface.UNITS).flatten(1)
        sides = [interface.pack_vectors(unit).numpy() for unit in units]
        direction = inputs.grad.new_empty(inputs.grad.shape)
        sums = np.zeros(batch * _pieces(shape))
        arrays = (*_arrays(inputs), *sides, constants, numbers.numpy(), _array(direction), sums)
        _run(_direct_kernel, shape, *arrays)
        mean_square = torch.from_numpy(sums).view(batch, -1).sum(1) / (rows * cols)
        return direction, mean_square.float().view(*direction.shape[:-2], 1, 1)

    return Passes(square_means, accumulate, direct)


def _array(tensor: Tensor) -> np.ndarray:
    """Returns a tensor as `(batch, rows, cols)`; a view if contiguous, as outputs must be."""
    return tensor.detach().contiguous().view(-1, *tensor.shape[-2:]).numpy()


def _arrays(inputs: Inputs) -> list[np.ndarray]:
    """Returns the arrays of the inputs in the kernels' order."""
    sides = [interface.pack_vectors(torch.stack(side)) for side in zip(*inputs.factors, strict=True)]
    full = (inputs.grad, inputs.param, *inputs.accumulators.momentum, *inputs.accumulators.rms)
    return [*map(_array, full), *(side.numpy() for side in sides)]


def _rows(shape: tuple[int, int, int]) -> int:
    """Returns the number of rows of a piece."""
    return min(max(PIECE_SIZE // shape[2], 1), shape[1])


def _pieces(shape: tuple[int, int, int]) -> int:
    """Returns the number of pieces of each matrix."""
    return -(-shape[1] // _rows(shape))


def _run(kernel: Callable[..., None], shape: tuple[int, int, int], *arguments: Any) -> None:
    """Calls a kernel for every piece with its number, its matrix and its rows."""
    count, step = _pieces(shape), _rows(shape)

    def work(number: int) -> None:
        matrix, place = divmod(number, count)
        first = place * step
        kernel(*arguments, number, matrix, first, min(first + step, shape[1]))

    threads.run(lambda: work, shape[0] * count)


# Vectorisation needs reordered sums and fused products; NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}


def _compile(function: Callable[..., Any]) -> Any:
    """Compiles a kernel at its first call, cached on disk where a writable place exists."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        return njit(**_OPTIONS)(function)


@njit(**_OPTIONS)
def _clamp(x, bound):
    x = bound if x > bound else x
    return -bound if x < -bound else x


@njit(**_OPTIONS)
def _relu(x):
    zero = np.float32(0.0)  # a literal would be float64
    return zero if x < zero else x


@njit(**_OPTIONS)
def _eight(numbers, start):
    return (
        numbers[start], numbers[start + 1], numbers[start + 2], numbers[start + 3],
        numbers[start + 4], numbers[start + 5], numbers[start + 6], numbers[start + 7],
    )  # fmt: skip


@njit(**_OPTIONS)
def _add(h, x, w):
    """Adds an input times its eight weights to the eight units."""
    return (
        h[0] + x * w[0], h[1] + x * w[1], h[2] + x * w[2], h[3] + x * w[3],
        h[4] + x * w[4], h[5] + x * w[5], h[6] + x * w[6], h[7] + x * w[7],
    )  # fmt: skip


@_compile
def _square_sums_kernel(grads, constants, over_cols, over_rows, number, matrix, start, stop):
    """Sums clipped squares over the columns, `(batch, rows)`, and over these rows, `(pieces, cols)`."""
    grad, clip = grads[matrix], constants[0]
    for i in range(start, stop):
        total = np.float32(0.0)
        for j in range(grad.shape[1]):
            g = _clamp(grad[i, j], clip)
            total += g * g
            over_rows[number, j] += g * g
        over_cols[matrix, i] = total


@_compile
def _accumulate_kernel(
    grads, params, momenta_0, momenta_1, momenta_2, seconds, row_factors, col_factors, busy, constants, sums,
    number, matrix, start, stop,
):  # fmt: skip
    """Updates momenta and rms in place, and sums squares of all channels over these rows.

    The sums are `(pieces, channels)`. `constants` are the bounds of the gradient and of its clipped channel,
    the epsilon below the root, and the weight of a new value in each momentum and in rms, 1 - β, which is
    multiplied by `busy`, `(batch,)`.
    """
    clip, small_clip, eps, own_busy = constants[0], constants[1], constants[2], busy[matrix]
    weight_0, weight_1 = constants[3] * own_busy, constants[4] * own_busy
    weight_2, weight_rms = constants[5] * own_busy, constants[6] * own_busy
    grad, param, rms, own = grads[matrix], params[matrix], seconds[matrix], sums[number]
    momentum_0, momentum_1, momentum_2 = momenta_0[matrix], momenta_1[matrix], momenta_2[matrix]
    row, col, one = row_factors[matrix], col_factors[matrix], np.float32(1.0)
    for i in range(start, stop):
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = np.float32(0.0)
        a9 = a10 = a11 = a12 = a13 = a14 = a15 = a16 = a17 = np.float32(0.0)
        for j in range(grad.shape[1]):
            g, p = _clamp(grad[i, j], clip), param[i, j]
            gg = g * g
            m0 = momentum_0[i, j] + weight_0 * (g - momentum_0[i, j])
            m1 = momentum_1[i, j] + weight_1 * (g - momentum_1[i, j])
            m2 = momentum_2[i, j] + weight_2 * (g - momentum_2[i, j])
            v = rms[i, j] + weight_rms * (gg - rms[i, j])
            momentum_0[i, j], momentum_1[i, j], momentum_2[i, j], rms[i, j] = m0, m1, m2, v
            small, inverse = _clamp(g, small_clip), one / (v + eps)
            m0, m1, m2 = m0 * m0, m1 * m1, m2 * m2
            f0, f1, f2 = col[0, j] * col[0, j], col[1, j] * col[1, j], col[2, j] * col[2, j]
            a0 += gg
            a1 += small * small
            a2 += p * p
            a3 += m0
            a4 += m1
            a5 += m2
            a6 += v * v
            a7 += m0 * inverse
            a8 += m1 * inverse
            a9 += m2 * inverse
            a10 += inverse
            a11 += gg * f0
            a12 += gg * f1
            a13 += gg * f2
            a14 += gg * inverse
            a15 += m0 * f0
            a16 += m1 * f1
            a17 += m2 * f2
        r0, r1, r2 = row[0, i] * row[0, i], row[1, i] * row[1, i], row[2, i] * row[2, i]
        totals = (
            a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10,
            a11 * r0, a12 * r1, a13 * r2, a14, a15 * r0, a16 * r1, a17 * r2,
        )  # fmt: skip
        for channel in range(18):
            own[channel] += totals[channel]


@_compile
def _direct_kernel(
    grads, params, momenta_0, momenta_1, momenta_2, seconds, row_factors, col_factors, row_units, col_units,
    constants, numbers, directions, sums, number, matrix, start, stop,
):  # fmt: skip
    """Computes the direction of these rows, and the sum of its squares, `(pieces,)`.

    `numbers` are `interface.pack_numbers` for each matrix, whose channels' scales multiply the first
    layer; the first layer's bias is in the row units.
    """
    clip, small_clip, eps, one = constants[0], constants[1], constants[2], np.float32(1.0)
    n = numbers[matrix]
    w_grad, w_clipped, w_param = _eight(n, 0), _eight(n, 8), _eight(n, 16)
    w_m0, w_m1, w_m2, w_rms = _eight(n, 24), _eight(n, 32), _eight(n, 40), _eight(n, 48)
    w_m0s, w_m1s, w_m2s, w_s = _eight(n, 56), _eight(n, 64), _eight(n, 72), _eight(n, 80)
    w_gf0, w_gf1, w_gf2, w_gs = _eight(n, 88), _eight(n, 96), _eight(n, 104), _eight(n, 112)
    w_m0f0, w_m1f1, w_m2f2 = _eight(n, 120), _eight(n, 128), _eight(n, 136)
    w0, w1, w2, w3 = _eight(n, 144), _eight(n, 152), _eight(n, 160), _eight(n, 168)
    w4, w5, w6, w7 = _eight(n, 176), _eight(n, 184), _eight(n, 192), _eight(n, 200)
    bias, last, last_bias = _eight(n, 208), _eight(n, 216), n[224]
    grad, param, rms, out = grads[matrix], params[matrix], seconds[matrix], directions[matrix]
    momentum_0, momentum_1, momentum_2 = momenta_0[matrix], momenta_1[matrix], momenta_2[matrix]
    row, col, r, c = row_factors[matrix], col_factors[matrix], row_units[matrix], col_units[matrix]
    for i in range(start, stop):
        row_0, row_1, row_2 = row[0, i], row[1, i], row[2, i]
        u = (r[0, i], r[1, i], r[2, i], r[3, i], r[4, i], r[5, i], r[6, i], r[7, i])
        for j in range(grad.shape[1]):
            g, p, v = _clamp(grad[i, j], clip), param[i, j], rms[i, j]
            m0, m1, m2 = momentum_0[i, j], momentum_1[i, j], momentum_2[i, j]
            f0, f1, f2 = row_0 * col[0, j], row_1 * col[1, j], row_2 * col[2, j]
            s = one / np.sqrt(v + eps)
            h = (
                u[0] + c[0, j], u[1] + c[1, j], u[2] + c[2, j], u[3] + c[3, j],
                u[4] + c[4, j], u[5] + c[5, j], u[6] + c[6, j], u[7] + c[7, j],
            )  # fmt: skip
            h = _add(h, g, w_grad)
            h = _add(h, _clamp(g, small_clip), w_clipped)
            h = _add(h, p, w_param)
            h = _add(h, m0, w_m0)
            h = _add(h, m1, w_m1)
            h = _add(h, m2, w_m2)
            h = _add(h, v, w_rms)
            h = _add(h, m0 * s, w_m0s)
            h = _add(h, m1 * s, w_m1s)
            h = _add(h, m2 * s, w_m2s)
            h = _add(h, s, w_s)
            h = _add(h, g * f0, w_gf0)
            h = _add(h, g * f1, w_gf1)
            h = _add(h, g * f2, w_gf2)
            h = _add(h, g * s, w_gs)
            h = _add(h, m0 * f0, w_m0f0)
            h = _add(h, m1 * f1, w_m1f1)
            h = _add(h, m2 * f2, w_m2f2)
            k = _add(bias, _relu(h[0]), w0)
            k = _add(k, _relu(h[1]), w1)
            k = _add(k, _relu(h[2]), w2)
            k = _add(k, _relu(h[3]), w3)
            k = _add(k, _relu(h[4]), w4)
            k = _add(k, _relu(h[5]), w5)
            k = _add(k, _relu(h[6]), w6)
            k = _add(k, _relu(h[7]), w7)
            value = last_bias + _relu(k[0]) * last[0] + _relu(k[1]) * last[1] + _relu(k[2]) * last[2]
            value += _relu(k[3]) * last[3] + _relu(k[4]) * last[4] + _relu(k[5]) * last[5]
            value += _relu(k[6]) * last[6] + _relu(k[7]) * last[7]
            out[i, j] = value
        total = np.float32(0.0)
        for j in range(
            out.shape[1]
        ):  # in the loop above, a sum would make LLVM unroll it beyond the registers
            total += out[i, j] * out[i, j]
        sums[number] += total
