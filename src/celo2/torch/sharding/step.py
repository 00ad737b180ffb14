"""The update of one sharded parameter: `celo2.torch.step` on the local elements.

The rule needs whole matrices only for means: of squared gradients along rows and columns, and of the squares
of each input channel and of the step. Each is a sum over the shards. Every process holds the whole row and
column accumulators, so their features need no sum. An update is a generator that yields its collective
requests, so that `runtime` can batch those of all parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import GRAD_CLIP, NORM_EPS, PRECONDITION_EPS
from celo2.torch import accumulators as accumulators_lib
from celo2.torch import features, mlp
from celo2.torch.accumulators import Accumulators
from celo2.torch.batching import Leaf, hold_counts, working_dtype
from celo2.torch.features import Inputs
from celo2.torch.kernels import dispatch
from celo2.torch.mlp import InputScales
from celo2.torch.quantization import decode
from celo2.torch.sharding import three_pass
from celo2.torch.sharding.collectives import AllReduce, Orthogonalize, UpdateTask
from celo2.torch.sharding.spec import Region, ShardingSpec
from celo2.torch.sharding.three_pass import round_shard
from celo2.torch.step import compute_direction
from celo2.torch.weights import Network


def update(network: Network, leaf: Leaf, spec: ShardingSpec, *, kernels: bool = True) -> UpdateTask:
    """Computes the un-negated step of the local elements and updates the leaf's accumulators.

    Args:
        network: The weights and the options.
        leaf: The local tensors and the layout of the whole parameter. Row and column accumulators are
            those of the whole parameter; for rank < 2 they are local.
        spec: The parameter's sharding spec.
        kernels: Whether this process may use compiled kernels, which yield the same requests.

    Yields:
        Requests to the other processes.

    Returns:
        The un-negated step, in the local shape.
    """
    config, shard = network.config, spec.shard
    dtype = working_dtype(leaf.param.dtype)
    if 0 in spec.shape:
        return torch.zeros_like(leaf.param, dtype=dtype)
    chosen = dispatch.choose(network, leaf.param, spec.layout, kernels=kernels)
    if chosen in dispatch.KERNELS.values() and spec.layout.axes is not None:
        passes = dispatch.make_passes(network, chosen, factored=True)
        steps, whole, blocks, busy = yield from three_pass.compute(network, leaf, spec, passes)
        hold_counts([leaf], None if busy is None else busy[None])
        steps = yield from _finish(steps, whole, blocks, spec, config, busy)
        return shard.from_blocks(steps, like=whole.grad)
    grad = leaf.grad.to(dtype).clamp(-GRAD_CLIP, GRAD_CLIP)
    accumulators, busy = yield from _accumulate(leaf, grad, spec, network)
    seen, raw = accumulators, None
    if config.bias_correction:
        count = leaf.count.to(grad.device)
        seen, raw = accumulators_lib.unbias(accumulators, count, config), accumulators
    whole = features.make_inputs(grad, leaf.param.to(dtype), seen, spec.layout.axes, raw=raw)
    blocks = list(_split_inputs(whole, spec))
    outputs = yield from _directions(network, whole, blocks, spec)
    hold_counts([leaf], None if busy is None else busy[None])
    steps = yield from _scale_by_magnitude(outputs, whole, spec, config)
    steps = yield from _finish(steps, whole, blocks, spec, config, busy)
    return shard.from_blocks(steps, like=grad)


def _accumulate(leaf: Leaf, grad: Tensor, spec: ShardingSpec, network: Network) -> UpdateTask:
    """Updates the accumulators; returns them and which matrices of the parameter were busy (None: all).

    The momentum and rms returned are not rounded to the state's dtype; the leaf's own are.
    """
    axes, layout, own, config = spec.layout.axes, spec.layout, leaf.accumulators, network.config
    momentum, rms = (
        tuple(decode(value, grad.dtype).to(grad.dtype) for value in family) for family in own[:2]
    )
    accumulators = Accumulators(momentum, rms, own.row, own.col)
    square = grad * grad
    kinds = () if axes is None else (axes.large, axes.small)
    totals = [torch.zeros_like(family[0]) for family in (own.row, own.col)[: len(kinds)]]
    over: list[Any] = [*kinds]
    if network.skip_zero_gradients and (axes is None or set(axes) != {-2, -1}):
        totals.append(grad.new_zeros(*layout.shape[:-2], 1, 1))
        over.append((-2, -1))
    for region, block in zip(spec.shard.regions, spec.shard.to_blocks(square), strict=True):
        for total, axis in zip(totals, over, strict=True):
            total[region.index_in(total.shape)] += block.sum(axis, keepdim=True)
    if totals:
        totals = yield AllReduce(totals)
    # The last total, a sum over the matrices or along one of their sides, shows which have a gradient.
    busy = accumulators_lib.find_busy(totals[-1]) if network.skip_zero_gradients else None
    if axes is None:
        accumulators_lib.update_factored(accumulators, square.reshape(-1, 1), None, None, config, busy)
    else:
        means = totals[0] / layout.shape[axes.large], totals[1] / layout.shape[axes.small]
        accumulators_lib.update_factored(accumulators, *means, axes, config, busy)
    accumulators_lib.update_full(accumulators, grad, config, _spread(busy, spec, like=grad))
    round_shard(leaf, momentum + rms, spec)
    return accumulators, busy


def _spread(busy: Tensor | None, spec: ShardingSpec, like: Tensor) -> Tensor | None:
    """Expands one value per matrix of the whole parameter to one per local element, or to one for all."""
    if busy is None:
        return None
    if spec.num_matrices == 1:
        return busy.reshape(())
    blocks = [busy[region.index_in(busy.shape)].expand(region.shape) for region in spec.shard.regions]
    return spec.shard.from_blocks(blocks, like=like)


def _split_inputs(whole: Inputs, spec: ShardingSpec) -> Iterator[Inputs]:
    """Splits inputs with the parameter's local shape, `whole`, by region."""
    shard, factored = spec.shard, spec.layout.axes is not None
    momentum, rms, row, col = whole.accumulators
    full = [shard.to_blocks(tensor) for tensor in (whole.grad, whole.param, *momentum, *rms)]

    def pick(vectors: Sequence[Tensor], region: Region) -> tuple[Tensor, ...]:
        if not factored:
            return tuple(vector.view(region.shape) for vector in vectors)
        return tuple(vector[region.index_in(vector.shape)] for vector in vectors)

    for region, (grad, param, *rest) in zip(shard.regions, zip(*full, strict=True), strict=True):
        vectors = pick(row, region), pick(col, region)
        accumulators = Accumulators(tuple(rest[: len(momentum)]), tuple(rest[len(momentum) :]), *vectors)
        factors, raw = (
            None if kind is None else tuple(pick(pair, region) for pair in kind)
            for kind in (whole.factors, whole.raw_factors)
        )
        assert factors is not None
        yield Inputs(grad, param, accumulators, factors, raw)


def _directions(network: Network, whole: Inputs, blocks: Sequence[Inputs], spec: ShardingSpec) -> UpdateTask:
    """Computes the direction and magnitude of every region."""
    config, factored = network.config, spec.layout.axes is not None
    if not spec.groups:
        return [compute_direction(block, network, factored) for block in blocks]
    scales = None
    if config.normalize_input:
        scales = yield from _scales(whole, blocks, spec, network)
    names = [name for name, _ in config.feature_groups(1 + factored)]
    outputs = []
    for region, block in zip(spec.shard.regions, blocks, strict=True):
        groups = features.compute(block, names, config)
        own = None if scales is None else _pick_scales(scales, region)
        outputs.append(mlp.compute(groups, own, network.numbers, config))
    return outputs


def _scales(whole: Inputs, blocks: Sequence[Inputs], spec: ShardingSpec, network: Network) -> UpdateTask:
    """Computes `rsqrt(mean(x²) + 1e-9)` of every channel over each matrix of the whole tensor."""
    config, factored = network.config, spec.layout.axes is not None
    names = features.full_names(config, factored=factored)
    totals = yield from _sum_matrices(
        [[x for group in features.compute(block, names, config).values() for x in group] for block in blocks],
        sum(len(network.numbers[name]) for name in names),
        whole.grad,
        spec,
    )
    full = iter(mlp.normalizer(totals / math.prod(spec.layout.shape[-2:])))
    scales = {name: tuple(next(full) for _ in network.numbers[name]) for name in names}
    vectors = features.compute(whole, features.vector_names(config, factored=factored), config)
    return scales | mlp.input_scales(vectors)


def _sum_matrices(
    channels: Sequence[Sequence[Tensor]], num_channels: int, like: Tensor, spec: ShardingSpec
) -> UpdateTask:
    """Computes sums of squares over each matrix of the whole tensor, `(channels, *leading axes, 1, 1)`.

    Args:
        channels: The channels of each region.
        num_channels: The number of channels; a process may have no region.
        like: A tensor with the dtype and device of the channels.
        spec: The sharding spec of the tensor.
    """
    totals = like.new_zeros(num_channels, *spec.layout.shape[:-2], 1, 1)
    for region, values in zip(spec.shard.regions, channels, strict=True):
        place = (slice(None), *region.index_in(totals.shape[1:]))
        totals[place] += torch.stack([(x * x).sum((-2, -1), keepdim=True) for x in values])
    [totals] = yield AllReduce([totals])
    return totals


def _pick_scales(scales: InputScales, region: Region) -> InputScales:
    return {
        name: tuple(scale[region.index_in(scale.shape)] for scale in group) for name, group in scales.items()
    }


def _scale_by_magnitude(
    outputs: Sequence[tuple[Tensor, Tensor | None]], whole: Inputs, spec: ShardingSpec, config: RuleConfig
) -> UpdateTask:
    directions, magnitudes = [d for d, _ in outputs], [m for _, m in outputs if m is not None]
    if not config.exp_mult:
        return directions
    if config.aggregate_mag:
        [total] = yield AllReduce([sum((m.sum() for m in magnitudes), whole.grad.new_zeros(()))])
        magnitudes = [total / math.prod(spec.shape)] * len(magnitudes)
    pairs = zip(directions, magnitudes, strict=True)
    return [d * torch.exp(config.exp_mult * m) for d, m in pairs]


def _finish(
    steps: list[Tensor],
    whole: Inputs,
    blocks: Sequence[Inputs],
    spec: ShardingSpec,
    config: RuleConfig,
    busy: Tensor | None,
) -> UpdateTask:
    if config.param_scale_mult:
        [total] = yield AllReduce([(whole.param * whole.param).sum()])
        scale = torch.sqrt(total / math.prod(spec.shape) + NORM_EPS)
        steps = [step * scale for step in steps]
    if config.orthogonalize and spec.layout.axes is not None:
        steps = yield Orthogonalize(steps)
    scales = busy
    if config.normalize_output:
        totals = yield from _sum_matrices([[step] for step in steps], 1, whole.grad, spec)
        scales = mlp.normalizer(totals[0] / math.prod(spec.layout.shape[-2:]))
        scales = scales if busy is None else scales * busy
    if scales is not None:
        steps = [
            step * scales[region.index_in(scales.shape)]
            for step, region in zip(steps, spec.shard.regions, strict=True)
        ]
    if config.rmsmult != 1.0:
        steps = [step * config.rmsmult for step in steps]
    if config.precondition_output:
        lasts = [block.accumulators.rms[-1] for block in blocks]
        steps = [s * torch.rsqrt(v + PRECONDITION_EPS) for s, v in zip(steps, lasts, strict=True)]
    return steps
