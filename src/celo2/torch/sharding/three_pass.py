"""The three passes of `celo2.torch.three_pass` on the local elements, with sums over the shards in between.

The local elements are blocks of matrices, and passes over different blocks are independent. The steps between
the passes request the same sums as the plain program of `step`, so each process may choose its own program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from celo2.torch import accumulators as accumulators_lib
from celo2.torch import features, mlp, three_pass
from celo2.torch.accumulators import Accumulators
from celo2.torch.batching import Leaf, working_dtype
from celo2.torch.features import Inputs
from celo2.torch.quantization import decode
from celo2.torch.rounding import round_all
from celo2.torch.sharding.collectives import AllReduce, UpdateTask
from celo2.torch.sharding.spec import ShardingSpec
from celo2.torch.three_pass import Passes
from celo2.torch.weights import Network


def compute(network: Network, leaf: Leaf, spec: ShardingSpec, passes: Passes) -> UpdateTask:
    """Computes the directions of the local elements and updates the leaf's accumulators.

    Args:
        network: Weights and options that satisfy `three_pass.covers`.
        leaf: The leaf, as in `step.update`.
        spec: The sharding spec, with a factored layout.
        passes: The implementation of the passes.

    Yields:
        Requests to the other processes.

    Returns:
        The directions of all regions, the local inputs, the inputs of all regions, and which matrices of
        the whole parameter were busy (`accumulators.find_busy`); None: all.
    """
    config, shard, axes = network.config, spec.shard, spec.layout.axes
    assert axes is not None
    local = _convert(leaf)
    full = (local.grad, local.param, *local.accumulators.momentum, *local.accumulators.rms)
    entered = list(zip(*([b.contiguous() for b in shard.to_blocks(x)] for x in full), strict=True))
    busy = yield from _update_factored(leaf, [own[0] for own in entered], spec, passes, network)
    vectors = Accumulators((), (), local.accumulators.row, local.accumulators.col)
    factors, units = three_pass.sort_factors(vectors, axes), three_pass.vector_units(vectors, network, axes)
    momenta, blocks = len(local.accumulators.momentum), []
    for region, (grad, param, *rest) in zip(shard.regions, entered, strict=True):
        own = tuple(tuple(side[region.index_in(side.shape)] for side in pair) for pair in factors)
        state = Accumulators(tuple(rest[:momenta]), tuple(rest[momenta:]), (), ())
        blocks.append(Inputs(grad, param, state, own))
    channels = len(features.full_channels(config, factored=True))
    totals = local.grad.new_zeros(channels, *spec.layout.shape[:-2], 1, 1)
    places = [(slice(None), *region.index_in(totals.shape[1:])) for region in shard.regions]
    for region, place, block in zip(shard.regions, places, blocks, strict=True):
        own = None if busy is None else busy[region.index_in(busy.shape)]
        totals[place] += passes.accumulate(block, own) * math.prod(block.grad.shape[-2:])
    if spec.groups:
        [totals] = yield AllReduce([totals])
    scales = mlp.normalizer(totals / math.prod(spec.layout.shape[-2:]))
    steps = []
    for region, place, block in zip(shard.regions, places, blocks, strict=True):
        along = tuple(unit[(slice(None), *region.index_in(unit.shape[1:]))] for unit in units)
        steps.append(passes.direct(block, scales[place], (along[0], along[1]))[0])
    if blocks:
        states = [block.accumulators.momentum + block.accumulators.rms for block in blocks]
        updated = [shard.from_blocks(own, like=local.grad) for own in zip(*states, strict=True)]
        round_shard(leaf, updated, spec)
    return steps, local, blocks, busy


def round_shard(leaf: Leaf, updated: Sequence[Tensor], spec: ShardingSpec) -> None:
    """Writes the local momenta and rms back, rounded if the state's dtype is narrower."""
    targets = leaf.accumulators.momentum + leaf.accumulators.rms
    if targets[0].dtype != updated[0].dtype:
        elements = spec.shard.flat_indices(spec.shape, updated[0].device)
        round_all(updated, targets, leaf.count, leaf.number, elements=elements)
        return
    for old, new in zip(targets, updated, strict=True):
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)


def _convert(leaf: Leaf) -> Inputs:
    """Returns the local inputs in the working dtype; the gradient is not clipped."""
    dtype, own = working_dtype(leaf.param.dtype), leaf.accumulators
    momentum, rms = (tuple(decode(value, dtype).to(dtype) for value in family) for family in own[:2])
    accumulators = Accumulators(momentum, rms, own.row, own.col)
    return Inputs(leaf.grad.to(dtype), leaf.param.to(dtype), accumulators, ())


def _update_factored(
    leaf: Leaf, grads: Sequence[Tensor], spec: ShardingSpec, passes: Passes, network: Network
) -> UpdateTask:
    axes, shape, own = spec.layout.axes, spec.layout.shape, leaf.accumulators
    assert axes is not None
    totals = [torch.zeros_like(own.row[0]), torch.zeros_like(own.col[0])]
    for region, block in zip(spec.shard.regions, grads, strict=True):
        over_cols, over_rows = passes.square_means(block)
        sums = {-1: over_cols * block.shape[-1], -2: over_rows * block.shape[-2]}
        for total, axis in zip(totals, (axes.large, axes.small), strict=True):
            total[region.index_in(total.shape)] += sums[axis]
    row, col = yield AllReduce(totals)
    busy = accumulators_lib.find_busy(row) if network.skip_zero_gradients else None
    means = row / shape[axes.large], col / shape[axes.small]
    accumulators_lib.update_factored(own, *means, axes, network.config, busy)
    return busy
