"""The three passes on a CPU as PyTorch operations on blocks of rows, with their buffers and sums.

Pass 2 does not compute the channels: the sum of squares of a product of a momentum with a row and a
column factor is a matrix product, `rowᵀ m² col`, as are those of the other products (`Sums`).
Pass 3 writes a block's channels side by side, `(channels, elements)`, in the order of `Slots`, so that each
layer of the network is one matrix product; the sum in the first layer starts from the rows, columns and bias.
Only the direction is stored at the whole tensor's size: blocks are computed in `Buffers` that each thread
keeps.

Blocks are independent, and several threads work on them (`threads`); sums are taken block by block
in a fixed order, so runs repeat exactly on any number of threads.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import CLIPPED_GRAD, GRAD_CLIP, RSQRT_EPS
from celo2.torch import features
from celo2.torch.features import Inputs
from celo2.torch.kernels import threads
from celo2.torch.three_pass import Passes, Units
from celo2.torch.weights import Network

# Elements of a block, and of the longest row that blocks serve: a trade-off between cache use and call
# overhead. No other size has been recorded; `benchmarks/torch_step.py --programs passes blocks --size 3m`
# measures a change.
BLOCK_SIZE = 1 << 15


def make_passes(network: Network, *, factored: bool) -> Passes:
    """Makes the passes of `three_pass.make_passes` for tensors of the working dtype on a CPU."""

    def square_means(grad: Tensor) -> tuple[Tensor, Tensor]:
        means = [_square_means(matrix, network.config) for matrix in _matrices(grad)]
        over_cols, over_rows = (torch.stack(side) for side in zip(*means, strict=True))
        return over_cols.view(*grad.shape[:-1], 1), over_rows.view(*grad.shape[:-2], 1, -1)

    def accumulate(inputs: Inputs, busy: Tensor | None) -> Tensor:
        parts = _split(inputs)
        kept = [1.0] * len(parts) if busy is None else busy.flatten().tolist()
        squares = [_accumulate(*pair, network.config, factored) for pair in zip(parts, kept, strict=True)]
        return torch.stack(squares, dim=1).view(-1, *inputs.grad.shape[:-2], 1, 1)

    def direct(inputs: Inputs, scales: Tensor, units: Units) -> tuple[Tensor, Tensor]:
        direction = inputs.grad.new_empty(inputs.grad.shape)
        flat = [_sides(unit) for unit in units]
        squares = [
            _direct(network, factored, *arguments)
            for arguments in zip(
                _split(inputs), scales.flatten(1).unbind(1), *flat, _matrices(direction), strict=True
            )
        ]
        return direction, torch.stack(squares).view(*direction.shape[:-2], 1, 1)

    return Passes(square_means, accumulate, direct)


def _matrices(tensor: Tensor) -> Sequence[Tensor]:
    """Returns the matrices of a tensor, contiguous; views of a contiguous tensor."""
    return tensor.reshape(-1, *tensor.shape[-2:]).contiguous().unbind()


def _sides(vectors: Tensor) -> Sequence[Tensor]:
    """Splits vectors, `(number, ..., rows or 1, cols or 1)`, by matrix."""
    return vectors.reshape(len(vectors), -1, *vectors.shape[-2:]).unbind(1)


class _Matrix(NamedTuple):
    """The `Inputs` of one matrix, all contiguous; factors are `(decays, rows, 1)` and `(decays, 1, cols)`."""

    grad: Tensor
    param: Tensor
    momentum: tuple[Tensor, ...]
    rms: tuple[Tensor, ...]
    factors: tuple[Tensor, Tensor]


def _split(inputs: Inputs) -> list[_Matrix]:
    grad, param = _matrices(inputs.grad), _matrices(inputs.param)
    momentum, rms = (list(zip(*map(_matrices, family), strict=True)) for family in inputs.accumulators[:2])
    sides = [_sides(torch.stack(side)) for side in zip(*inputs.factors, strict=True)]
    return [_Matrix(*one) for one in zip(grad, param, momentum, rms, zip(*sides, strict=True), strict=True)]


def _rows(shape: Sequence[int]) -> int:
    """Returns the number of rows of a block."""
    return min(max(BLOCK_SIZE // shape[1], 1), shape[0])


def _run(matrix: Tensor, config: RuleConfig, work: Callable[[int, slice, View], None]) -> None:
    """Calls a function with the number, the rows and the buffers of each block."""
    rows, cols = matrix.shape
    step = _rows(matrix.shape)

    def make_worker() -> Callable[[int], None]:
        buffers = Buffers.of_thread(step * cols, config, like=matrix)

        def worker(number: int) -> None:
            part = slice(number * step, min((number + 1) * step, rows))
            work(number, part, buffers.view(part.stop - part.start, cols))

        return worker

    threads.run(make_worker, -(-rows // step))


def _square_means(grad: Tensor, config: RuleConfig) -> tuple[Tensor, Tensor]:
    """Computes means of the squared, clipped gradient over the columns, `(rows,)`, and over the rows."""
    rows, cols = grad.shape
    over_cols = grad.new_empty(rows)
    partial = grad.new_empty(-(-rows // _rows(grad.shape)), cols)

    def work(number: int, part: slice, view: View) -> None:
        square = view.first[0].copy_(grad[part]).clamp_(-GRAD_CLIP, GRAD_CLIP).square_()
        torch.sum(square, 1, out=over_cols[part])
        torch.sum(square, 0, out=partial[number])

    _run(grad, config, work)
    return over_cols / cols, partial.sum(0) / rows


def _accumulate(inputs: _Matrix, busy: float, config: RuleConfig, factored: bool) -> Tensor:
    """Updates the moments in place unless `busy` is 0; returns the channels' mean squares, `(channels,)`."""
    grad, param, momentum, rms, (along_rows, along_cols) = inputs
    rows, cols = grad.shape
    count, kept, decays = -(-rows // _rows(grad.shape)), len(momentum) + 1, len(along_rows)
    ones = along_cols.new_ones(1, 1, cols)
    weights = torch.cat([along_cols, ones]).square_()[:, 0]  # (decays + 1, cols)
    by_row = grad.new_empty(decays + 1, kept, rows)
    by_rms = grad.new_empty(count, kept, len(rms))
    alone = grad.new_empty(count, 2 + 2 * len(rms))  # param, clipped, rms, their inverses

    def work(number: int, part: slice, view: View) -> None:
        channels, squares = view.channels[:kept], view.squares
        channels[-1].view(-1, cols).copy_(grad[part]).clamp_(-GRAD_CLIP, GRAD_CLIP)
        for index, (m, decay) in enumerate(zip(momentum, config.initial_momentum_decays, strict=True)):
            new = m[part].view(-1).lerp_(channels[-1], (1.0 - decay) * busy)
            channels[index].copy_(new)
        torch.mul(channels, channels, out=squares)
        for index, (v, decay) in enumerate(zip(rms, config.initial_rms_decays, strict=True)):
            new = v[part].view(-1).lerp_(squares[-1], (1.0 - decay) * busy)
            torch.add(new, RSQRT_EPS, out=view.inverses[index]).reciprocal_()
            torch.dot(new, new, out=alone[number, 2 + index])
            torch.sum(view.inverses[index], 0, out=alone[number, 2 + len(rms) + index])
        by_row[:, :, part] = (weights @ squares.view(-1, cols).T).view(decays + 1, kept, -1)
        torch.mm(squares, view.inverses.T, out=by_rms[number])
        own = param[part].view(-1)
        torch.dot(own, own, out=alone[number, 0])
        clipped = channels[-1].clamp_(-CLIPPED_GRAD, CLIPPED_GRAD)
        torch.dot(clipped, clipped, out=alone[number, 1])

    _run(grad, config, work)
    by_factor = (by_row[:-1] * along_rows.square().view(decays, 1, rows)).sum(-1)  # (decays, kept)
    sums = Sums(by_row[-1].sum(-1), by_rms.sum(0), by_factor, alone.sum(0))
    channels = features.full_channels(config, factored=factored)
    return torch.stack([sums.of(*channel) for channel in channels]) / (rows * cols)


def _direct(
    network: Network,
    factored: bool,
    inputs: _Matrix,
    scales: Tensor,
    along_rows: Tensor,
    along_cols: Tensor,
    out: Tensor,
) -> Tensor:
    """Computes the direction of a matrix into `out` and returns its mean square.

    Args:
        network: Weights and options.
        factored: As in `three_pass.make_passes`.
        inputs: The inputs of one matrix, with updated moments.
        scales: The scales of the channels, `(channels,)`.
        along_rows: Added to the first layer, `(units, rows, 1)`.
        along_cols: Added to the first layer, `(units, 1, cols)`.
        out: The output, `(rows, cols)`.
    """
    config = network.config
    slots = Slots.make(config)
    first = out.new_zeros(config.ff_hidden_size, slots.size)
    names = features.full_names(config, factored=factored)
    channels = features.full_channels(config, factored=factored)
    places = [slots.place(*channel, config) for channel in channels]
    first[:, places] = (network.tensor(*names, like=out) * scales[:, None]).T
    later = [network.layer(layer, like=out) for layer in range(1, config.ff_hidden_layers + 1)]
    activate = torch.relu_ if config.mlp_activation == "relu" else torch.tanh_
    squares = out.new_empty(-(-len(out) // _rows(out.shape)))

    def work(number: int, part: slice, view: View) -> None:
        _fill(view, inputs, part, slots, config)
        torch.add(along_rows[:, part], along_cols, out=view.first)
        hidden, other = view.hidden
        hidden[:-1].addmm_(first, view.channels)
        for layer in later[:-1]:
            activate(hidden[:-1])
            torch.mm(layer, hidden, out=other[:-1])
            hidden, other = other, hidden
        target = out[part].view(-1)
        if later:
            activate(hidden[:-1])
            torch.mv(hidden.T, later[-1][0], out=target)
        else:
            target.copy_(hidden[0])
        torch.dot(target, target, out=squares[number])

    _run(out, config, work)
    return squares.sum() / out.numel()


def _fill(view: View, inputs: _Matrix, part: slice, slots: Slots, config: RuleConfig) -> None:
    """Writes a block's channels into `view.channels`, in the order of `Slots`."""
    grad, param, momentum, rms, (along_rows, along_cols) = inputs
    channels, kept, count = view.channels, len(momentum) + 1, len(rms)
    sources = [tensor[part] for tensor in (*momentum, grad, param, *rms)]
    torch.cat(sources, out=channels[: slots.rsqrt].view(-1, grad.shape[1]))
    gradient = channels[kept - 1].clamp_(-GRAD_CLIP, GRAD_CLIP)
    roots = channels[slots.rsqrt : slots.clipped]
    torch.add(channels[slots.rms : slots.rsqrt], RSQRT_EPS, out=roots).rsqrt_()
    torch.clamp(gradient, -CLIPPED_GRAD, CLIPPED_GRAD, out=channels[slots.clipped])
    if count == 1:
        torch.mul(channels[:kept], roots, out=channels[slots.normalized : slots.factored_momentum])
    else:
        torch.mul(channels[: kept - 1], roots, out=channels[slots.normalized :][: kept - 1])
        torch.mul(gradient, roots, out=channels[slots.normalized + kept - 1 :][:count])
    torch.mul(along_rows[:, part], along_cols, out=view.factors.view(len(along_rows), -1, grad.shape[1]))
    if config.with_fac_mom_mult:
        target = channels[slots.factored_momentum : slots.factored_grad]
        torch.mul(channels[: kept - 1], view.factors, out=target)
    torch.mul(gradient, view.factors, out=channels[slots.factored_grad :])


class Slots(NamedTuple):
    """The layout of the rows of a block's buffer, `(channels, elements)`.

    Channels computed by one operation are adjacent. All channels have a row; those of disabled features
    have zero weights. With the default options:

        m0 m1 m2 g | p v | s | clip(g) | m0 s, m1 s, m2 s, g s | m0 f0, m1 f1, m2 f2 | g f0, g f1, g f2

    Attributes:
        momentum: The first row of the momenta, followed by the gradient and the parameter.
        rms: The first row of the second moments.
        rsqrt: The first row of the reciprocal roots of the second moments.
        clipped: The row of the clipped gradient.
        normalized: The first row of the momenta, then the gradients, over the roots of the second moments.
        factored_momentum: The first row of the momenta over the factored moments; no rows if that is off.
        factored_grad: The first row of the gradients over the factored moments.
        size: The number of rows.
    """

    momentum: int
    rms: int
    rsqrt: int
    clipped: int
    normalized: int
    factored_momentum: int
    factored_grad: int
    size: int

    @classmethod
    @functools.cache
    def make(cls, config: RuleConfig) -> Slots:
        """Makes the layout for these options."""
        momenta, second = len(config.initial_momentum_decays), len(config.initial_rms_decays)
        factored = len(config.initial_adafactor_decays)
        sizes = (momenta + 2, second, second, 1, momenta + second, momenta * config.with_fac_mom_mult)
        starts = [0]
        for size in (*sizes, factored):
            starts.append(starts[-1] + size)
        return cls(*starts)

    def place(self, feature: str, number: int, config: RuleConfig) -> int:
        """Returns the row of one of a feature's channels."""
        momenta = len(config.initial_momentum_decays)
        first = {
            "grad": momenta,
            "clipped_grad": self.clipped,
            "param": momenta + 1,
            "momentum": 0,
            "rms": self.rms,
            "normalized_momentum": self.normalized,
            "rsqrt_rms": self.rsqrt,
            "factored_grad": self.factored_grad,
            "normalized_grad": self.normalized + momenta,
            "factored_momentum": self.factored_momentum,
        }[feature]
        return first + number


class View(NamedTuple):
    """Views of the buffers for a block of a given shape, all contiguous.

    Attributes:
        channels: The channels, `(channels, elements)`.
        hidden: Two buffers of hidden units, `(units + 1, elements)`; the last row is 1, for the next bias.
        first: The units of the first buffer as `(units, rows, cols)`.
        factors: Products of row and column factors, `(decays, elements)`.
        squares: Squares of the momenta and the gradient, `(momenta + 1, elements)`.
        inverses: Reciprocals of the second moments, `(rms decays, elements)`.
    """

    channels: Tensor
    hidden: tuple[Tensor, Tensor]
    first: Tensor
    factors: Tensor
    squares: Tensor
    inverses: Tensor


class _Own(threading.local):
    """The buffers that each thread keeps from step to step."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[RuleConfig, torch.dtype], Buffers] = {}


_own = _Own()


class Buffers:
    """Memory for blocks up to some size, with the views for the last shape requested."""

    @staticmethod
    def of_thread(size: int, config: RuleConfig, *, like: Tensor) -> Buffers:
        """Returns this thread's buffers: 5.5 MiB in float32 for the default options and block size."""
        known = _own.buffers.get((config, like.dtype))
        if known is None or known.size < size:
            known = _own.buffers[config, like.dtype] = Buffers(size, config, like=like)
        return known

    def __init__(self, size: int, config: RuleConfig, *, like: Tensor):
        self.size = size
        counts = [
            Slots.make(config).size,
            *[config.ff_hidden_size + 1] * 2,
            len(config.initial_adafactor_decays),
        ]
        counts += [len(config.initial_momentum_decays) + 1, len(config.initial_rms_decays)]
        self._memory = [like.new_empty(count * size) for count in counts]
        self._views: dict[tuple[int, int], View] = {}

    def view(self, rows: int, cols: int) -> View:
        """Returns the views for a block of this shape."""
        if (rows, cols) not in self._views:
            size = rows * cols
            whole = [memory[: len(memory) // self.size * size] for memory in self._memory]
            self._views = {(rows, cols): self._make(whole, rows, cols)}
        return self._views[rows, cols]

    def _make(self, whole: list[Tensor], rows: int, cols: int) -> View:
        flat = [memory.view(-1, rows * cols) for memory in whole]
        for hidden in flat[1:3]:
            hidden[-1] = 1.0
        first = flat[1][:-1].view(-1, rows, cols)
        return View(flat[0], (flat[1], flat[2]), first, *flat[3:])


class Sums(NamedTuple):
    """Sums of squares over a matrix, from which those of all channels follow.

    Attributes:
        plain: The sums for the momenta and the gradient, `(momenta + 1,)`.
        normalized: The same over the second moments, `(momenta + 1, rms decays)`.
        factored: The same over the factored moments, `(decays, momenta + 1)`.
        alone: The sums for the parameter, the clipped gradient, the rms and their reciprocal roots.
    """

    plain: Tensor
    normalized: Tensor
    factored: Tensor
    alone: Tensor

    def of(self, feature: str, index: int) -> Tensor:
        """Returns the sum of squares of one of a feature's channels."""
        momenta, second = len(self.plain) - 1, self.normalized.shape[1]
        return {
            "grad": lambda: self.plain[-1],
            "clipped_grad": lambda: self.alone[1],
            "param": lambda: self.alone[0],
            "momentum": lambda: self.plain[index],
            "rms": lambda: self.alone[2 + index],
            "normalized_momentum": lambda: self.normalized[index, index % second],
            "rsqrt_rms": lambda: self.alone[2 + second + index],
            "factored_grad": lambda: self.factored[index, momenta],
            "normalized_grad": lambda: self.normalized[-1, index],
            "factored_momentum": lambda: self.factored[index, index],
        }[feature]()
