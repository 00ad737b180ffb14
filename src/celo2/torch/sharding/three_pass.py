"""The three passes on the elements of one process, by kernels: `passes`, with sums over the shards.

A shard is some blocks of matrices, and a pass over a block needs no other. What lies between the passes
asks for the same sums as the plain program of `step`, so each process may choose for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from celo2.constants import NORM_EPS
from celo2.torch import accumulators as accumulators_lib
from celo2.torch import features, three_pass
from celo2.torch.accumulators import Accumulators
from celo2.torch.batching import Leaf, working_dtype
from celo2.torch.features import Inputs
from celo2.torch.rounding import round_all
from celo2.torch.sharding.collectives import Asking, Sums
from celo2.torch.sharding.spec import Division
from celo2.torch.three_pass import Passes
from celo2.torch.weights import Network


def compute(network: Network, leaf: Leaf, division: Division, made: Passes) -> Asking:
    """Yields what it needs of the others; the leaf's accumulators change.

    Args:
        network: Weights and options, which `three_pass.covers` has approved.
        leaf: As in `step.update`.
        division: Which elements are local, of a factored layout.
        made: Who makes the passes.

    Returns:
        The directions of all parts, the local inputs, the inputs of all parts, and which matrices of the
        whole parameter were busy (`accumulators.find_busy`); None: all.
    """
    config, shard, axes = network.config, division.own, division.layout.axes
    assert axes is not None
    local = _convert(leaf)
    full = (local.grad, local.param, *local.accumulators.momentum, *local.accumulators.rms)
    entered = list(zip(*([b.contiguous() for b in shard.enter(x)] for x in full), strict=True))
    busy = yield from _update_factored(leaf, [own[0] for own in entered], division, made, network)
    vectors = Accumulators((), (), local.accumulators.row, local.accumulators.col)
    factors, units = three_pass.sort_factors(vectors, axes), three_pass.vector_units(vectors, network, axes)
    momenta, blocks = len(local.accumulators.momentum), []
    for part, (grad, param, *rest) in zip(shard.parts, entered, strict=True):
        own = tuple(tuple(side[part.address(side.shape)] for side in pair) for pair in factors)
        state = Accumulators(tuple(rest[:momenta]), tuple(rest[momenta:]), (), ())
        blocks.append(Inputs(grad, param, state, own, own))
    channels = len(features.full_channels(config, factored=True))
    totals = local.grad.new_zeros(channels, *division.layout.shape[:-2], 1, 1)
    places = [(slice(None), *part.address(totals.shape[1:])) for part in shard.parts]
    for part, place, block in zip(shard.parts, places, blocks, strict=True):
        own = None if busy is None else busy[part.address(busy.shape)]
        totals[place] += made.accumulate(block, own) * math.prod(block.grad.shape[-2:])
    if division.groups:
        [totals] = yield Sums([totals])
    scales = torch.rsqrt(totals / math.prod(division.layout.shape[-2:]) + NORM_EPS)
    steps = []
    for part, place, block in zip(shard.parts, places, blocks, strict=True):
        along = tuple(unit[(slice(None), *part.address(unit.shape[1:]))] for unit in units)
        steps.append(made.direct(block, scales[place], (along[0], along[1]))[0])
    if blocks:
        states = [block.accumulators.momentum + block.accumulators.rms for block in blocks]
        updated = [shard.leave(own, like=local.grad) for own in zip(*states, strict=True)]
        round_shard(leaf, updated, division)
    return steps, local, blocks, busy


def round_shard(leaf: Leaf, updated: Sequence[Tensor], division: Division) -> None:
    """Writes momenta and rms of the local shape back, rounded where they are kept smaller."""
    targets = leaf.accumulators.momentum + leaf.accumulators.rms
    if targets[0].dtype != updated[0].dtype:
        elements = division.own.numbers(division.shape, updated[0].device)
        round_all(updated, targets, leaf.count, leaf.number, elements=elements)
        return
    for old, new in zip(targets, updated, strict=True):
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)


def _convert(leaf: Leaf) -> Inputs:
    """All local elements in the working dtype; the gradient is not clipped."""
    dtype, own = working_dtype(leaf.param.dtype), leaf.accumulators
    momentum, rms = (tuple(value.to(dtype) for value in family) for family in own[:2])
    accumulators = Accumulators(momentum, rms, own.row, own.col)
    return Inputs(leaf.grad.to(dtype), leaf.param.to(dtype), accumulators, (), ())


def _update_factored(
    leaf: Leaf, grads: Sequence[Tensor], division: Division, made: Passes, network: Network
) -> Asking:
    axes, shape, own = division.layout.axes, division.layout.shape, leaf.accumulators
    assert axes is not None
    totals = [torch.zeros_like(own.row[0]), torch.zeros_like(own.col[0])]
    for part, block in zip(division.own.parts, grads, strict=True):
        along_rows, along_cols = made.square_means(block)
        sums = {-1: along_rows * block.shape[-1], -2: along_cols * block.shape[-2]}
        for total, axis in zip(totals, (axes.large, axes.small), strict=True):
            total[part.address(total.shape)] += sums[axis]
    row, col = yield Sums(totals)
    busy = accumulators_lib.find_busy(row) if network.skip_zero_gradients else None
    means = row / shape[axes.large], col / shape[axes.small]
    accumulators_lib.update_factored(own, *means, axes, network.config, busy)
    return busy
