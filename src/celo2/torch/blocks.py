"""The fast equal of `step.compute_direction` on a CPU: features and network, block by block of rows.

A block's channels are computed into one buffer of shape `(channels, elements)` that stays in the
cache and serves all blocks; the first layer is then one matrix product, and so is each later one.
Mean squares come from a first pass over the same blocks. Channels that are rows or columns go
through the first layer as vectors, and start the sum. Nothing of the whole tensor's size is stored
but the direction.

It needs a layout in which one matrix has nothing to do with the others (`Layout.by_matrix`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import features, mlp
from celo2.torch._buffers import Buffers, fill
from celo2.torch.accumulators import Accumulators
from celo2.torch.features import Inputs
from celo2.torch.network import Network

__all__ = ["BLOCK_SIZE", "compute_direction"]

BLOCK_SIZE = 1 << 15  # elements of a block: its channels fit into the cache, calls cost little beside them


class _Grid(NamedTuple):
    """How matrices are cut: several whole ones together, or each into pieces of some rows."""

    matrices: int
    rows: int

    def cut(self, tensor: Tensor, num_rows: int) -> list[Tensor]:
        """The pieces of `(matrices or 1, …, rows or 1, columns or 1)`; what has one row is repeated."""
        pieces = []
        for whole in tensor.split(self.matrices, 0):
            if tensor.shape[-2] == 1 != num_rows:
                pieces += [whole] * -(-num_rows // self.rows)
            else:
                pieces += whole.split(self.rows, -2)
        return pieces


def compute_direction(inputs: Inputs, network: Network, factored: bool) -> tuple[Tensor, Tensor | None]:
    """Direction and magnitude of every element; see `mlp.compute`.

    Args:
        inputs: Of `features.make_inputs`, of any number of leading axes before the matrix.
        network: The weights and the options.
        factored: Whether the parameters have rank ≥ 2.
    """
    config = network.config
    shape = inputs.grad.shape
    inputs = _map(inputs, lambda tensor: tensor.reshape(-1, *tensor.shape[-2:]))
    batch, num_rows, num_columns = inputs.grad.shape
    grid = _make_grid(inputs.grad.shape)
    names = features.full_names(config, factored=factored)
    parts = _cut_inputs(inputs, grid)
    first = network.tensor(*names, like=inputs.grad)  # (channels, units)
    outputs = [first.new_empty(inputs.grad.shape) for _ in range(2 if config.exp_mult else 1)]
    size = min(grid.matrices, batch) * grid.rows * num_columns
    buffers = Buffers(size, len(first), network, like=inputs.grad)
    first_layer = first.T.expand(batch, -1, -1)
    if config.normalize_input:
        scales = _scales(parts, names, buffers, config, inputs.grad.shape)
        first_layer = first_layer * scales[:, None, :]
    layers = [piece for piece in first_layer.split(grid.matrices) for _ in range(-(-num_rows // grid.rows))]
    vectors = [
        grid.cut(units.expand(batch, -1, -1, -1), num_rows)
        for units in _vector_units(inputs, network, factored)
    ]
    targets = [grid.cut(output, num_rows) for output in outputs]
    for part, layer, start, target in zip(
        parts, layers, zip(*vectors, strict=True), zip(*targets, strict=True), strict=True
    ):
        channels = fill(buffers.channels(part.grad.shape), part, names, buffers, config)
        hidden = _start(start, buffers.hidden(0, part.grad.shape)).baddbmm_(layer, channels)
        _later_layers(hidden, target, network, buffers)
    direction, *magnitude = (output.view(shape) for output in outputs)
    return direction, magnitude[0] if magnitude else None


def _make_grid(shape: Sequence[int]) -> _Grid:
    _, rows, columns = shape
    if 2 * rows * columns <= BLOCK_SIZE:
        return _Grid(max(BLOCK_SIZE // (rows * columns), 1), rows)
    return _Grid(1, min(max(BLOCK_SIZE // columns, 1), rows))


def _cut_inputs(inputs: Inputs, grid: _Grid) -> list[Inputs]:
    """The inputs of every block; all are views."""
    rows = inputs.grad.shape[1]
    pieces: list[list[Tensor]] = []

    def collect(tensor: Tensor) -> Tensor:
        pieces.append(grid.cut(tensor, rows))
        return tensor

    _map(inputs, collect)
    return [_rebuild(inputs, block) for block in zip(*pieces, strict=True)]


def _rebuild(like: Inputs, tensors: Sequence[Tensor]) -> Inputs:
    own = iter(tensors)
    return _map(like, lambda _: next(own))


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Applies a function to every tensor, in a fixed order."""
    grad, param, accumulators, factors, raw_factors = inputs
    moved = tuple(tuple(map(function, pair)) for pair in factors)
    raw = moved if raw_factors is factors else tuple(tuple(map(function, pair)) for pair in raw_factors)
    families = Accumulators(*(tuple(map(function, family)) for family in accumulators))
    return Inputs(function(grad), function(param), families, moved, raw)


def _scales(
    parts: Sequence[Inputs],
    names: Sequence[str],
    buffers: Buffers,
    config: RuleConfig,
    shape: Sequence[int],
) -> Tensor:
    """`rsqrt(mean(x²) + 1e-9)` of the channels of every matrix: `(matrices, channels)`."""
    squares = []
    for part in parts:
        channels = fill(buffers.channels(part.grad.shape), part, names, buffers, config)
        if len(channels) == 1:
            squares.append(torch.stack([torch.dot(x, x) for x in channels[0].unbind()])[None])
        else:
            squares.append(torch.linalg.vecdot(channels, channels))
    batch, rows, columns = shape
    alone = len(squares) > batch  # several blocks a matrix
    sums = torch.stack(squares).view(batch, -1, len(squares[0][0])).sum(1) if alone else torch.cat(squares)
    return torch.rsqrt(sums / (rows * columns) + mlp.NORM_EPS)


def _vector_units(inputs: Inputs, network: Network, factored: bool) -> list[Tensor]:
    """What rows, columns and the bias add to each hidden unit, one tensor for rows and one for columns.

    Their shape is `(matrices or 1, units, rows or 1, columns or 1)`; the bias alone is the only one
    where no such feature is on.
    """
    config, grad = network.config, inputs.grad
    names = features.vector_names(config, factored=factored)
    sums: dict[tuple[bool, bool], Tensor] = {}
    for name, group in features.compute(inputs, names, config).items():
        scales = mlp.input_scales({name: group})[name] if config.normalize_input else (1.0,) * len(group)
        for values, scale, row in zip(group, scales, network.tensor(name, like=grad), strict=True):
            units = (values * scale)[:, None] * row.view(1, -1, 1, 1)
            kind = values.shape[1] == 1, values.shape[2] == 1
            sums[kind] = sums[kind] + units if kind in sums else units
    bias = network.tensor("b0", like=grad).view(1, -1, 1, 1)
    if not sums:
        return [bias]
    first, *rest = sums.values()
    return [first + bias, *rest]


def _start(vectors: Sequence[Tensor], hidden: Tensor) -> Tensor:
    """The sum of `_vector_units` at a block, written into `(matrices, units, rows, columns)`; flattened."""
    if len(vectors) == 1:
        hidden.copy_(vectors[0])
    else:
        torch.add(*vectors, out=hidden)
    return hidden.flatten(2)


def _later_layers(hidden: Tensor, targets: Sequence[Tensor], network: Network, buffers: Buffers) -> None:
    """From the first layer's sums, `(matrices, units, elements)`, to the outputs, one target each."""
    config = network.config
    for layer in range(1, config.ff_hidden_layers + 1):
        hidden = hidden.relu_() if config.mlp_activation == "relu" else hidden.tanh_()
        weight, bias = (network.tensor(f"{kind}{layer}", like=hidden) for kind in "wb")
        matrices = weight.T.expand(len(hidden), -1, -1)
        if layer < config.ff_hidden_layers:
            out = buffers.hidden(layer % 2, targets[0].shape).flatten(2)
            hidden = torch.baddbmm(bias[:, None], matrices, hidden, out=out)
            continue
        for unit, target in enumerate(targets):
            one = slice(unit, unit + 1)
            torch.baddbmm(bias[one, None], matrices[:, one], hidden, out=target.flatten(1)[:, None])
