"""The three passes as Numba kernels on a CPU: their launch and the kernels themselves.

Work is divided into pieces of some rows of one matrix. Pieces are independent, and several threads work
on them (`threads`); sums are taken piece by piece in a fixed order, so runs repeat exactly on any number of
threads. Numba comes with `celo2[cpu]`; nothing else imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit  # pyright: ignore[reportMissingImports]
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import CLIPPED_GRAD, GRAD_CLIP, RSQRT_EPS
from celo2.torch.features import Inputs
from celo2.torch.kernels import interface, threads
from celo2.torch.three_pass import Passes, Units
from celo2.torch.weights import Network

# Elements of a piece of several rows: 0.1 ms in the last pass for two units, 0.4 ms for eight. On one thread,
# `benchmarks/torch_step.py --programs blocks numba --size 3m` takes equally long with sizes from 2¹⁵ to 2¹⁸.
PIECE_SIZE = 1 << 16


def make_passes(network: Network, *, factored: bool) -> Passes:
    """Makes the passes of `three_pass.make_passes` for float32 tensors on a CPU.

    Args:
        network: Weights and options that satisfy `interface.fits`.
        factored: As in `three_pass.make_passes`.
    """
    config = network.config
    places = interface.find_places(config, factored=factored)
    lengths = _make_lengths(config)
    weights = [1.0 - decay for decay in (*config.initial_momentum_decays, *config.initial_rms_decays)]
    constants = np.array([GRAD_CLIP, CLIPPED_GRAD, RSQRT_EPS, *weights], np.float32)
    packed = interface.pack_weights(network, factored=factored)

    def square_means(grad: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = interface.batch_shape(grad)
        over_cols = np.empty((batch, rows), np.float32)
        over_rows = np.zeros((batch, _pieces(shape), cols), np.float32)
        _run(_square_sums_kernel, shape, _array(grad), constants, over_cols, over_rows)
        sums = torch.from_numpy(over_cols), torch.from_numpy(over_rows.sum(1))
        return (sums[0] / cols).view(*grad.shape[:-1], 1), (sums[1] / rows).view(*grad.shape[:-2], 1, cols)

    def accumulate(inputs: Inputs, busy: Tensor | None) -> Tensor:
        batch, rows, cols = shape = interface.batch_shape(inputs.grad)
        sums = np.zeros((batch, _pieces(shape), interface.NUM_CHANNELS))
        kept = np.ones(batch, np.float32) if busy is None else busy.flatten().numpy()
        _run(_accumulate_kernel, shape, *_arrays(inputs), kept, lengths, constants, sums)
        squares = torch.from_numpy(sums.sum(1).T[places]) / (rows * cols)
        return squares.float().view(-1, *inputs.grad.shape[:-2], 1, 1)

    def direct(inputs: Inputs, scales: Tensor, units: Units) -> tuple[Tensor, Tensor]:
        batch, rows, cols = shape = interface.batch_shape(inputs.grad)
        numbers = np.repeat(packed[None], batch, axis=0)
        numbers[:, places] *= scales.numpy().reshape(len(places), batch).T[..., None]
        sides = [numbers, numbers]  # not read
        if interface.has_vectors(config):
            sides = [interface.pack_units(unit, config).numpy() for unit in units]
        direction = inputs.grad.new_empty(inputs.grad.shape)
        sums = np.zeros((batch, _pieces(shape)))
        arrays = (*_arrays(inputs), *sides, numbers, lengths, constants, _array(direction), sums)
        _run(_direct_kernel, shape, *arrays)
        mean_square = torch.from_numpy(sums.sum(1)) / (rows * cols)
        return direction, mean_square.float().view(*direction.shape[:-2], 1, 1)

    return Passes(square_means, accumulate, direct)


def _make_lengths(config: RuleConfig) -> tuple[tuple[bool, ...], ...]:
    """Makes tuples whose lengths are compile-time constants for Numba's kernels.

    The first has one entry per unit. The others, for vectors and for each feature of `interface.CHANNELS`,
    have as many if it is on and are empty otherwise. Features that are off are not computed, nor read if
    nothing else needs them. Features that tensors of rank < 2 lack have zero weights, so that one program
    serves all. The tuples are plain, since Numba's cache stores a class by name and fails once it is gone.
    """
    units = (True,) * interface.count_units(config)
    names = {feature.name for _, feature in config.feature_groups(2)}
    enabled = [interface.has_vectors(config), *(name in names for name, _ in interface.CHANNELS)]
    return units, *(units if on else () for on in enabled)


def _array(tensor: Tensor) -> np.ndarray:
    """Returns a tensor as `(batch, rows, cols)`, a view if it is contiguous, as outputs must be."""
    return tensor.detach().contiguous().numpy().reshape(-1, *tensor.shape[-2:])


def _arrays(inputs: Inputs) -> list[np.ndarray]:
    """Returns the arrays of the inputs in the kernels' order."""
    sides = [_pack_vectors(side) for side in zip(*inputs.factors, strict=True)]
    full = (inputs.grad, inputs.param, *inputs.accumulators.momentum, *inputs.accumulators.rms)
    return [*map(_array, full), *sides]


def _pack_vectors(vectors: Sequence[Tensor]) -> np.ndarray:
    """Stacks vectors, `(..., rows or 1, cols or 1)`, to `(batch, number, size)`."""
    size = vectors[0].shape[-2] * vectors[0].shape[-1]
    return np.stack([vector.numpy().reshape(-1, size) for vector in vectors], axis=1)


def _rows(shape: tuple[int, int, int]) -> int:
    """Returns the number of rows of a piece."""
    return min(max(PIECE_SIZE // shape[2], 1), shape[1])


def _pieces(shape: tuple[int, int, int]) -> int:
    """Returns the number of pieces of each matrix."""
    return -(-shape[1] // _rows(shape))


def _run(kernel: Callable[..., None], shape: tuple[int, int, int], *arguments: Any) -> None:
    """Calls a kernel for every piece, with its index in the matrix, the matrix and its rows."""
    count, step = _pieces(shape), _rows(shape)

    def work(number: int) -> None:
        matrix, piece = divmod(number, count)
        first = piece * step
        kernel(*arguments, piece, matrix, first, min(first + step, shape[1]))

    threads.run(lambda: work, shape[0] * count)


# Vectorisation requires reordered sums and fused products; NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}


def _compile(function: Callable[..., Any]) -> Any:
    """Compiles a kernel at its first call, with an on-disk cache if a writable place exists."""
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
def _take(rows, first, length):
    """Returns the numbers of a row as a tuple of this length: none, two or eight."""
    row = rows[first]
    if len(length) == 0:
        return ()
    if len(length) == 2:
        return row[0], row[1]
    return row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]


@njit(**_OPTIONS)
def _take_rows(rows, first, length):
    """Returns `length` rows as tuples."""
    if len(length) == 2:
        return _take(rows, first, length), _take(rows, first + 1, length)
    return (
        _take(rows, first, length), _take(rows, first + 1, length),
        _take(rows, first + 2, length), _take(rows, first + 3, length),
        _take(rows, first + 4, length), _take(rows, first + 5, length),
        _take(rows, first + 6, length), _take(rows, first + 7, length),
    )  # fmt: skip


@njit(**_OPTIONS)
def _scale(w, x):
    """Multiplies weights by a number."""
    if len(w) == 2:
        return x * w[0], x * w[1]
    return x * w[0], x * w[1], x * w[2], x * w[3], x * w[4], x * w[5], x * w[6], x * w[7]


@njit(**_OPTIONS)
def _add(h, x, w):
    """Adds an input times its weights to as many numbers; empty weights add nothing, empty `h` is zeros."""
    if len(w) == 0:
        return h
    if len(h) == 0:
        return _scale(w, x)
    if len(h) == 2:
        return h[0] + x * w[0], h[1] + x * w[1]
    return (
        h[0] + x * w[0], h[1] + x * w[1], h[2] + x * w[2], h[3] + x * w[3],
        h[4] + x * w[4], h[5] + x * w[5], h[6] + x * w[6], h[7] + x * w[7],
    )  # fmt: skip


@njit(**_OPTIONS)
def _add_vectors(h, vectors, j, length):
    """Adds an element of each unit's vector, or nothing if the length is 0."""
    if len(length) == 0:
        return h
    if len(h) == 2:
        return h[0] + vectors[0, j], h[1] + vectors[1, j]
    return (
        h[0] + vectors[0, j], h[1] + vectors[1, j], h[2] + vectors[2, j], h[3] + vectors[3, j],
        h[4] + vectors[4, j], h[5] + vectors[5, j], h[6] + vectors[6, j], h[7] + vectors[7, j],
    )  # fmt: skip


@njit(**_OPTIONS)
def _add_layer(k, h, weights):
    """Adds the activations of the first layer times their weights to the second layer."""
    k = _add(k, _relu(h[0]), weights[0])
    k = _add(k, _relu(h[1]), weights[1])
    if len(h) == 2:
        return k
    k = _add(k, _relu(h[2]), weights[2])
    k = _add(k, _relu(h[3]), weights[3])
    k = _add(k, _relu(h[4]), weights[4])
    k = _add(k, _relu(h[5]), weights[5])
    k = _add(k, _relu(h[6]), weights[6])
    return _add(k, _relu(h[7]), weights[7])


@njit(**_OPTIONS)
def _add_output(total, k, w):
    """Adds the activations of the second layer times their weights to a number."""
    total += _relu(k[0]) * w[0] + _relu(k[1]) * w[1]
    if len(k) == 2:
        return total
    total += _relu(k[2]) * w[2] + _relu(k[3]) * w[3] + _relu(k[4]) * w[4]
    return total + _relu(k[5]) * w[5] + _relu(k[6]) * w[6] + _relu(k[7]) * w[7]


@njit(**_OPTIONS)
def _add_if(total, x, length):
    """Adds a number unless the length is 0."""
    if len(length) == 0:
        return total
    return total + x


@_compile
def _square_sums_kernel(grads, constants, over_cols, over_rows, piece, matrix, start, stop):
    """Sums clipped squares over columns, `(batch, rows)`, and over these rows, `(batch, pieces, cols)`."""
    grad, clip = grads[matrix], constants[0]
    for i in range(start, stop):
        total = np.float32(0.0)
        for j in range(grad.shape[1]):
            g = _clamp(grad[i, j], clip)
            total += g * g
            over_rows[matrix, piece, j] += g * g
        over_cols[matrix, i] = total


@_compile
def _accumulate_kernel(
    grads, params, momenta_0, momenta_1, momenta_2, seconds, row_factors, col_factors, busy, lengths,
    constants, sums, piece, matrix, start, stop,
):  # fmt: skip
    """Updates momenta and rms in place, and sums squares of the enabled channels over these rows.

    The sums are `(batch, pieces, channels)`. `constants` are the bounds of the gradient and of its clipped
    channel, the epsilon under the root, and the weight of a new value in each momentum and in rms, 1 - β,
    which is multiplied by `busy`, `(batch,)`. `lengths` is the result of `_make_lengths`.
    """
    _, _, grad_on, clipped_on, param_on, m_on, rms_on, ms_on, s_on, gf_on, gs_on, mf_on = lengths
    clip, small_clip, eps, own_busy = constants[0], constants[1], constants[2], busy[matrix]
    weight_0, weight_1 = constants[3] * own_busy, constants[4] * own_busy
    weight_2, weight_rms = constants[5] * own_busy, constants[6] * own_busy
    grad, param, rms, own = grads[matrix], params[matrix], seconds[matrix], sums[matrix, piece]
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
            a0 = _add_if(a0, gg, grad_on)
            a1 = _add_if(a1, small * small, clipped_on)
            a2 = _add_if(a2, p * p, param_on)
            a3 = _add_if(a3, m0, m_on)
            a4 = _add_if(a4, m1, m_on)
            a5 = _add_if(a5, m2, m_on)
            a6 = _add_if(a6, v * v, rms_on)
            a7 = _add_if(a7, m0 * inverse, ms_on)
            a8 = _add_if(a8, m1 * inverse, ms_on)
            a9 = _add_if(a9, m2 * inverse, ms_on)
            a10 = _add_if(a10, inverse, s_on)
            a11 = _add_if(a11, gg * f0, gf_on)
            a12 = _add_if(a12, gg * f1, gf_on)
            a13 = _add_if(a13, gg * f2, gf_on)
            a14 = _add_if(a14, gg * inverse, gs_on)
            a15 = _add_if(a15, m0 * f0, mf_on)
            a16 = _add_if(a16, m1 * f1, mf_on)
            a17 = _add_if(a17, m2 * f2, mf_on)
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
    weights, lengths, constants, directions, sums, piece, matrix, start, stop,
):  # fmt: skip
    """Computes the direction of these rows and its sum of squares, `(batch, pieces)`.

    `weights` are `interface.pack_weights` for each matrix, with the first layer multiplied by the scales of
    its channels. `row_units` and `col_units` are `interface.pack_units`, read if vectors are on.
    """
    units, vectors, grad_on, clipped_on, param_on, m_on, rms_on, ms_on, s_on, gf_on, gs_on, mf_on = lengths
    clip, small_clip, eps, one = constants[0], constants[1], constants[2], np.float32(1.0)
    w = weights[matrix]
    w_grad, w_clipped, w_param = _take(w, 0, grad_on), _take(w, 1, clipped_on), _take(w, 2, param_on)
    w_m0, w_m1, w_m2 = _take(w, 3, m_on), _take(w, 4, m_on), _take(w, 5, m_on)
    w_rms, w_s, w_gs = _take(w, 6, rms_on), _take(w, 10, s_on), _take(w, 14, gs_on)
    w_m0s, w_m1s, w_m2s = _take(w, 7, ms_on), _take(w, 8, ms_on), _take(w, 9, ms_on)
    w_gf0, w_gf1, w_gf2 = _take(w, 11, gf_on), _take(w, 12, gf_on), _take(w, 13, gf_on)
    w_m0f0, w_m1f1, w_m2f2 = _take(w, 15, mf_on), _take(w, 16, mf_on), _take(w, 17, mf_on)
    place = 18 + len(units)
    layer, last = _take_rows(w, 18, units), _take(w, place + 2, units)
    first_bias, bias = _take(w, place, units), _take(w, place + 1, units)
    last_bias = w[place + 3, 0]
    grad, param, rms, out = grads[matrix], params[matrix], seconds[matrix], directions[matrix]
    momentum_0, momentum_1, momentum_2 = momenta_0[matrix], momenta_1[matrix], momenta_2[matrix]
    row, col = row_factors[matrix], col_factors[matrix]
    r, c = row_units[matrix], col_units[matrix]
    for i in range(start, stop):
        row_0, row_1, row_2 = row[0, i], row[1, i], row[2, i]
        u = _add_vectors(first_bias, r, i, vectors)
        for j in range(grad.shape[1]):
            g, p, v = _clamp(grad[i, j], clip), param[i, j], rms[i, j]
            m0, m1, m2 = momentum_0[i, j], momentum_1[i, j], momentum_2[i, j]
            f0, f1, f2 = row_0 * col[0, j], row_1 * col[1, j], row_2 * col[2, j]
            s = one / np.sqrt(v + eps)
            h = _add_vectors(u, c, j, vectors)
            w_g = _add(_add(_add(_add(w_grad, s, w_gs), f0, w_gf0), f1, w_gf1), f2, w_gf2)
            h = _add(_add(h, g, w_g), _clamp(g, small_clip), w_clipped)
            h = _add(h, m0, _add(_add(w_m0, s, w_m0s), f0, w_m0f0))
            h = _add(h, m1, _add(_add(w_m1, s, w_m1s), f1, w_m1f1))
            h = _add(h, m2, _add(_add(w_m2, s, w_m2s), f2, w_m2f2))
            h = _add(_add(_add(h, p, w_param), v, w_rms), s, w_s)
            out[i, j] = _add_output(last_bias, _add_layer(bias, h, layer), last)
        total = np.float32(0.0)
        # In the loop above, a sum would make LLVM unroll it beyond the registers.
        for j in range(out.shape[1]):
            total += out[i, j] * out[i, j]
        sums[matrix, piece] += total
