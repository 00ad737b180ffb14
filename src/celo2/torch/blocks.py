"""The fast equal of `step.compute_direction` on a CPU: features and network, block by block of rows.

A block's channels are computed into one buffer of shape `(channels, elements)` that stays in the
cache; the first layer is then one matrix product, and so is each later one. Mean squares come from a
first pass over the same blocks. Channels that are rows or columns go through the first layer as
vectors, and start the sum. Nothing of the whole tensor's size is stored but the direction.

It needs a layout in which one matrix has nothing to do with the others (`Layout.by_matrix`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.torch import features, mlp
from celo2.torch.accumulators import Accumulators
from celo2.torch.features import Inputs
from celo2.torch.network import Network

__all__ = ["BLOCK_SIZE", "compute_direction"]

BLOCK_SIZE = 1 << 13  # elements of a block: some 30 channels and units of them fit into a core's L2 cache


class _Block(NamedTuple):
    """Rows of one matrix, or several whole matrices."""

    matrices: slice
    rows: slice


def compute_direction(inputs: Inputs, network: Network, factored: bool) -> tuple[Tensor, Tensor | None]:
    """Direction and magnitude of every element; see `mlp.compute`.

    Args:
        inputs: Of `features.make_inputs`, of any number of leading axes before the matrix.
        network: The weights and the options.
        factored: Whether the parameters have rank ≥ 2.
    """
    config = network.config
    shape = inputs.grad.shape
    inputs = _flatten(inputs)
    outputs = [torch.empty_like(inputs.grad) for _ in range(2 if config.exp_mult else 1)]
    names = features.full_names(config, factored=factored)
    first = network.tensor(*names, like=inputs.grad)  # (channels, units)
    first_layer = first.T.expand(len(inputs.grad), -1, -1)
    if config.normalize_input:
        first_layer = first_layer * _scales(inputs, names, network)[:, None, :]
    vectors = _vector_units(inputs, network, factored)
    for block in _blocks(inputs.grad.shape):
        channels = _channels(_part(inputs, block), names, network)
        hidden = _start(vectors, block, channels)
        hidden.baddbmm_(first_layer[block.matrices], channels)
        for output, values in zip(outputs, _later_layers(hidden, network, len(outputs)), strict=True):
            part = output[block.matrices, block.rows]
            part.copy_(values.view(part.shape))
    direction, *magnitude = (output.view(shape) for output in outputs)
    return direction, magnitude[0] if magnitude else None


def _blocks(shape: Sequence[int]) -> Iterator[_Block]:
    batch, rows, columns = shape
    if 2 * rows * columns <= BLOCK_SIZE:
        together = max(BLOCK_SIZE // (rows * columns), 1)
        for start in range(0, batch, together):
            yield _Block(slice(start, start + together), slice(0, rows))
        return
    together = max(BLOCK_SIZE // columns, 1)
    for matrix in range(batch):
        for start in range(0, rows, together):
            yield _Block(slice(matrix, matrix + 1), slice(start, min(start + together, rows)))


def _flatten(inputs: Inputs) -> Inputs:
    """All leading axes in one."""
    return _map(inputs, lambda tensor: tensor.reshape(-1, *tensor.shape[-2:]))


def _part(inputs: Inputs, block: _Block) -> Inputs:
    def part(tensor: Tensor) -> Tensor:
        own = tensor[block.matrices]
        return own if own.shape[1] == 1 else own[:, block.rows]

    return _map(inputs, part)


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    grad, param, accumulators, factors, raw_factors = inputs
    moved = tuple(tuple(map(function, pair)) for pair in factors)
    raw = moved if raw_factors is factors else tuple(tuple(map(function, pair)) for pair in raw_factors)
    families = Accumulators(*(tuple(map(function, family)) for family in accumulators))
    return Inputs(function(grad), function(param), families, moved, raw)


def _channels(inputs: Inputs, names: Sequence[str], network: Network) -> Tensor:
    """`(matrices, channels, elements)` of one block."""
    groups = features.compute(inputs, names, network.config)
    stacked = torch.stack([channel for name in names for channel in groups[name]], 1)
    return stacked.flatten(2)


def _scales(inputs: Inputs, names: Sequence[str], network: Network) -> Tensor:
    """`rsqrt(mean(x²) + 1e-9)` of the channels of every matrix: `(matrices, channels)`."""
    sums: dict[int, Tensor] = {}
    parts = []
    for block in _blocks(inputs.grad.shape):
        channels = _channels(_part(inputs, block), names, network)
        squares = torch.linalg.vecdot(channels, channels)
        start = block.matrices.start
        if start in sums:
            sums[start] += squares
        else:
            sums[start] = squares
            parts.append(sums[start])
    size = inputs.grad.shape[1] * inputs.grad.shape[2]
    return torch.rsqrt(torch.cat(parts) / size + mlp.NORM_EPS)


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


def _start(vectors: Sequence[Tensor], block: _Block, channels: Tensor) -> Tensor:
    """The sum of `_vector_units` at a block, `(matrices, units, elements)`, as a new tensor."""
    own = [unit if len(unit) == 1 else unit[block.matrices] for unit in vectors]
    parts = [unit if unit.shape[2] == 1 else unit[:, :, block.rows] for unit in own]
    matrices, _, elements = channels.shape
    rows = block.rows.stop - block.rows.start
    total = channels.new_empty(matrices, vectors[0].shape[1], rows, elements // rows)
    if len(parts) == 1:
        total.copy_(parts[0])
    else:
        torch.add(*parts, out=total)
    return total.flatten(2)


def _later_layers(hidden: Tensor, network: Network, num_outputs: int) -> tuple[Tensor, ...]:
    """From the first layer's sums to the outputs in use, each `(matrices, elements)`."""
    config = network.config
    for layer in range(1, config.ff_hidden_layers + 1):
        hidden = hidden.relu_() if config.mlp_activation == "relu" else hidden.tanh_()
        weight, bias = (network.tensor(f"{kind}{layer}", like=hidden) for kind in "wb")
        if layer == config.ff_hidden_layers:
            weight, bias = weight[:, :num_outputs], bias[:num_outputs]
        hidden = torch.baddbmm(bias[:, None], weight.T.expand(len(hidden), -1, -1), hidden)
    return hidden.unbind(1)
