"""One update of a tensor that is divided among processes: `step`, on the elements of one process.

What the rule takes of a whole matrix are means: of squared gradients along rows and columns, of the
squares of each input channel and of the step. Each is a sum over the shards. Row and column
accumulators are whole in every process, so what is made of them needs no sum. An update is a
generator that yields what it needs of the others, so that all parameters' sums can travel together.
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
from celo2.torch.sharding import three_pass
from celo2.torch.sharding.collectives import Asking, Matrices, Sums
from celo2.torch.sharding.spec import Division, Part
from celo2.torch.sharding.three_pass import round_shard
from celo2.torch.step import compute_direction
from celo2.torch.weights import Network


def update(network: Network, leaf: Leaf, division: Division, *, kernels: bool = True) -> Asking:
    """Yields what it needs and returns the un-negated step of the local elements.

    Args:
        network: The weights and the options.
        leaf: Local tensors, and the layout of the whole; row and column accumulators are those of the
            whole parameter, for rank < 2 the local ones. Accumulators change.
        division: Which elements are local.
        kernels: Whether compiled kernels may be used, in this process: they ask for the same.
    """
    config, shard = network.config, division.own
    dtype = working_dtype(leaf.param.dtype)
    if 0 in division.shape:
        return torch.zeros_like(leaf.param, dtype=dtype)
    chosen = dispatch.choose(network, leaf.param, division.layout, kernels=kernels)
    if chosen in dispatch.KERNELS.values() and division.layout.axes is not None:
        made = dispatch.make_passes(network, chosen, factored=True)
        steps, whole, blocks, busy = yield from three_pass.compute(network, leaf, division, made)
        hold_counts([leaf], None if busy is None else busy[None])
        steps = yield from _finish(steps, whole, blocks, division, config, busy)
        return shard.leave(steps, like=whole.grad)
    grad = leaf.grad.to(dtype).clamp(-GRAD_CLIP, GRAD_CLIP)
    accumulators, busy = yield from _accumulate(leaf, grad, division, network)
    seen, raw = accumulators, None
    if config.bias_correction:
        count = leaf.count.to(grad.device)
        seen, raw = accumulators_lib.unbias(accumulators, count, config), accumulators
    whole = features.make_inputs(grad, leaf.param.to(dtype), seen, division.layout.axes, raw=raw)
    blocks = list(_cut(whole, division))
    outputs = yield from _directions(network, whole, blocks, division)
    hold_counts([leaf], None if busy is None else busy[None])
    steps = yield from _scale_by_magnitude(outputs, whole, division, config)
    steps = yield from _finish(steps, whole, blocks, division, config, busy)
    return shard.leave(steps, like=grad)


def _accumulate(leaf: Leaf, grad: Tensor, division: Division, network: Network) -> Asking:
    """The accumulators after this step, and which of the whole parameter's matrices were busy; None: all.

    Momentum and rms are not yet rounded; the leaf's own are.
    """
    axes, layout, own, config = division.layout.axes, division.layout, leaf.accumulators, network.config
    momentum, rms = (tuple(value.to(grad.dtype) for value in family) for family in own[:2])
    accumulators = Accumulators(momentum, rms, own.row, own.col)
    square = grad * grad
    kinds = () if axes is None else (axes.large, axes.small)
    totals = [torch.zeros_like(family[0]) for family in (own.row, own.col)[: len(kinds)]]
    over: list[Any] = [*kinds]
    if network.skip_zero_gradients and (axes is None or set(axes) != {-2, -1}):
        totals.append(grad.new_zeros(*layout.shape[:-2], 1, 1))
        over.append((-2, -1))
    for part, block in zip(division.own.parts, division.own.enter(square), strict=True):
        for total, axis in zip(totals, over, strict=True):
            total[part.address(total.shape)] += block.sum(axis, keepdim=True)
    if totals:
        totals = yield Sums(totals)
    # What is summed last, or along one side of the matrices, tells which of them have a gradient.
    busy = accumulators_lib.find_busy(totals[-1]) if network.skip_zero_gradients else None
    if axes is None:
        accumulators_lib.update_factored(accumulators, square.reshape(-1, 1), None, None, config, busy)
    else:
        means = totals[0] / layout.shape[axes.large], totals[1] / layout.shape[axes.small]
        accumulators_lib.update_factored(accumulators, *means, axes, config, busy)
    accumulators_lib.update_full(accumulators, grad, config, _spread(busy, division, like=grad))
    round_shard(leaf, momentum + rms, division)
    return accumulators, busy


def _spread(busy: Tensor | None, division: Division, like: Tensor) -> Tensor | None:
    """From one number for each matrix of the whole to one for each local element, or one for all."""
    if busy is None:
        return None
    if division.num_matrices == 1:
        return busy.reshape(())
    blocks = [busy[part.address(busy.shape)].expand(part.shape) for part in division.own.parts]
    return division.own.leave(blocks, like=like)


def _cut(whole: Inputs, division: Division) -> Iterator[Inputs]:
    """The inputs of every part, in the layout's shape; `whole` has the parameter's local shape."""
    shard, factored = division.own, division.layout.axes is not None
    momentum, rms, row, col = whole.accumulators
    full = [shard.enter(tensor) for tensor in (whole.grad, whole.param, *momentum, *rms)]

    def pick(vectors: Sequence[Tensor], part: Part) -> tuple[Tensor, ...]:
        if not factored:
            return tuple(vector.view(part.shape) for vector in vectors)
        return tuple(vector[part.address(vector.shape)] for vector in vectors)

    for number, part in enumerate(shard.parts):
        grad, param, *rest = (blocks[number] for blocks in full)
        vectors = pick(row, part), pick(col, part)
        accumulators = Accumulators(tuple(rest[: len(momentum)]), tuple(rest[len(momentum) :]), *vectors)
        factors, raw = (
            tuple(pick(pair, part) for pair in kind) for kind in (whole.factors, whole.raw_factors)
        )
        yield Inputs(grad, param, accumulators, factors, raw)


def _directions(network: Network, whole: Inputs, blocks: Sequence[Inputs], division: Division) -> Asking:
    """Direction and magnitude of every part."""
    config, factored = network.config, division.layout.axes is not None
    if not division.groups:
        return [compute_direction(block, network, factored) for block in blocks]
    scales = None
    if config.normalize_input:
        scales = yield from _scales(whole, blocks, division, network)
    names = [name for name, _ in config.feature_groups(1 + factored)]
    outputs = []
    for part, block in zip(division.own.parts, blocks, strict=True):
        groups = features.compute(block, names, config)
        own = None if scales is None else _pick_scales(scales, part)
        outputs.append(mlp.compute(groups, own, network.numbers, config))
    return outputs


def _scales(whole: Inputs, blocks: Sequence[Inputs], division: Division, network: Network) -> Asking:
    """`rsqrt(mean(x²) + 1e-9)` of every channel of the whole tensor, for each of its matrices."""
    config, factored = network.config, division.layout.axes is not None
    names = features.full_names(config, factored=factored)
    totals = yield from _sum_matrices(
        [[x for group in features.compute(block, names, config).values() for x in group] for block in blocks],
        sum(len(network.numbers[name]) for name in names),
        whole.grad,
        division,
    )
    full = iter(torch.rsqrt(totals / math.prod(division.layout.shape[-2:]) + NORM_EPS))
    scales = {name: tuple(next(full) for _ in network.numbers[name]) for name in names}
    vectors = features.compute(whole, features.vector_names(config, factored=factored), config)
    return scales | mlp.input_scales(vectors)


def _sum_matrices(
    channels: Sequence[Sequence[Tensor]], num_channels: int, like: Tensor, division: Division
) -> Asking:
    """Sums of squares over each matrix of the whole tensor, `(channels, *leading axes, 1, 1)`.

    Args:
        channels: Of each part.
        num_channels: How many there are; a process may have no part.
        like: Dtype and device.
        division: Which parts they are.
    """
    totals = like.new_zeros(num_channels, *division.layout.shape[:-2], 1, 1)
    for part, values in zip(division.own.parts, channels, strict=True):
        place = (slice(None), *part.address(totals.shape[1:]))
        totals[place] += torch.stack([(x * x).sum((-2, -1), keepdim=True) for x in values])
    [totals] = yield Sums([totals])
    return totals


def _pick_scales(scales: InputScales, part: Part) -> InputScales:
    return {
        name: tuple(scale[part.address(scale.shape)] for scale in group) for name, group in scales.items()
    }


def _scale_by_magnitude(
    outputs: Sequence[tuple[Tensor, Tensor | None]], whole: Inputs, division: Division, config: RuleConfig
) -> Asking:
    directions, magnitudes = [d for d, _ in outputs], [m for _, m in outputs if m is not None]
    if not config.exp_mult:
        return directions
    if config.aggregate_mag:
        [total] = yield Sums([sum((m.sum() for m in magnitudes), whole.grad.new_zeros(()))])
        magnitudes = [total / math.prod(division.shape)] * len(magnitudes)
    pairs = zip(directions, magnitudes, strict=True)
    return [d * torch.exp(config.exp_mult * m) for d, m in pairs]


def _finish(
    steps: list[Tensor],
    whole: Inputs,
    blocks: Sequence[Inputs],
    division: Division,
    config: RuleConfig,
    busy: Tensor | None,
) -> Asking:
    if config.param_scale_mult:
        [total] = yield Sums([(whole.param * whole.param).sum()])
        scale = torch.sqrt(total / math.prod(division.shape) + NORM_EPS)
        steps = [step * scale for step in steps]
    if config.orthogonalize and division.layout.axes is not None:
        steps = yield Matrices(steps)
    scales = busy
    if config.normalize_output:
        totals = yield from _sum_matrices([[step] for step in steps], 1, whole.grad, division)
        scales = torch.rsqrt(totals[0] / math.prod(division.layout.shape[-2:]) + NORM_EPS)
        scales = scales if busy is None else scales * busy
    if scales is not None:
        steps = [
            step * scales[part.address(scales.shape)]
            for step, part in zip(steps, division.own.parts, strict=True)
        ]
    if config.rmsmult != 1.0:
        steps = [step * config.rmsmult for step in steps]
    if config.precondition_output:
        lasts = [block.accumulators.rms[-1] for block in blocks]
        steps = [s * torch.rsqrt(v + PRECONDITION_EPS) for s, v in zip(steps, lasts, strict=True)]
    return steps
