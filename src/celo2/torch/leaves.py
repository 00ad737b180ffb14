"""The rule on many parameters: small ones of equal shape are stacked and updated together.

A small tensor costs the launch of some hundred operations, so the vectors of a deep network would
cost more than its matrices. Large tensors are updated where they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.torch import implementation, step
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Layout
from celo2.torch.implementation import Implementation
from celo2.torch.network import Network
from celo2.torch.passes import Matrix
from celo2.torch.rounding import round_all

__all__ = ["STACK_LIMIT", "Leaf", "iterate_leaves", "working_dtype"]

STACK_LIMIT = 1 << 15  # elements of the largest tensor that is worth a copy
TOGETHER_LIMIT = 1 << 26  # elements of leaves whose steps exist at once


class Leaf(NamedTuple):
    """One parameter with all that its step needs.

    Attributes:
        grad: The gradient, not negated.
        param: The parameter, of the same shape and device.
        accumulators: In the parameter's shape (momentum, rms) and the layout's (row, col); updated
            in place. Momentum and rms may be bfloat16, all else has the working dtype.
        count: This step's number, a scalar tensor, from 1.
        layout: How the rule sees the parameter.
        number: The parameter's number in the optimizer, for the rounding.
    """

    grad: Tensor
    param: Tensor
    accumulators: Accumulators
    count: Tensor  # type: ignore[assignment]  # tuple.count is not meant
    layout: Layout
    number: int = 0


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the rule computes in: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def iterate_leaves(
    network: Network, leaves: Sequence[Leaf], *, stack: bool = True
) -> Iterator[tuple[Leaf, Tensor]]:
    """Pairs of a leaf and its step, in an order of its own: only one group's steps exist at once.

    Args:
        network: The weights and the options.
        leaves: What is updated; their accumulators change.
        stack: Whether small tensors of equal shape may be copied together.
    """
    for group in _group(network, leaves, stack):
        chosen = implementation.choose(network, group[0].param, group[0].layout)
        steps = _update_stack(network, group) if chosen == "plain" else _update_all(network, group, chosen)
        yield from zip(group, steps, strict=True)


def _group(network: Network, leaves: Sequence[Leaf], stack: bool) -> list[list[Leaf]]:
    """Leaves to update together: small ones of equal shape, and on a GPU equal ones of any size."""

    def alone(leaf: Leaf) -> bool:
        chosen = implementation.choose(network, leaf.param, leaf.layout)
        return chosen == "plain" or leaf.param.device.type == "cpu"

    groups: dict[Hashable, list[Leaf]] = {}
    for index, leaf in enumerate(leaves):
        grad, param, accumulators, _, layout, _ = leaf
        stored = accumulators.momentum[0].dtype
        key: Hashable = (param.shape, param.dtype, param.device, grad.dtype, stored, layout)
        if not stack or (param.numel() > STACK_LIMIT and alone(leaf)):
            key = index
        group = groups.setdefault(key, [])
        if group and (len(group) + 1) * param.numel() > TOGETHER_LIMIT:
            groups[index] = groups.pop(key)
            groups[key] = group = []
        group.append(leaf)
    return list(groups.values())


def _update_all(network: Network, leaves: Sequence[Leaf], chosen: Implementation) -> list[Tensor]:
    """`step.update_all` on leaves of one layout, each where it is."""
    layout = leaves[0].layout
    dtype = working_dtype(leaves[0].param.dtype)

    def own(tensor: Tensor) -> Tensor:
        return layout.enter(tensor).to(dtype).contiguous()  # passes write into it

    def enter(leaf: Leaf) -> Matrix:
        grad, param = (layout.enter(tensor) for tensor in (leaf.grad, leaf.param))
        if chosen != "triton":  # whose kernels convert what they read
            grad, param = grad.to(dtype), param.to(dtype)
        momentum, rms, row, col = leaf.accumulators
        full = Accumulators(tuple(map(own, momentum)), tuple(map(own, rms)), row, col)
        return Matrix(grad, param, full)

    matrices = [enter(leaf) for leaf in leaves]
    assert layout.axes is not None  # `implementation.choose` has seen to it
    made = implementation.make_passes(network, chosen)
    steps = step.update_all(network, matrices, layout.axes, made)
    for leaf, (_, _, updated) in zip(leaves, matrices, strict=True):
        _write_back(leaf, updated.momentum + updated.rms, dtype=dtype, views=layout.keeps_order)
    return [layout.leave(own, leaf.param.shape) for own, leaf in zip(steps, leaves, strict=True)]


def _update_stack(network: Network, leaves: Sequence[Leaf]) -> list[Tensor]:
    """`step.update` on leaves of one layout, stacked, and their accumulators written back."""
    layout = leaves[0].layout
    dtype = working_dtype(leaves[0].param.dtype)
    alone = len(leaves) == 1

    def entered(tensors: Sequence[Tensor]) -> Tensor:
        moved = [layout.enter(tensor).to(dtype) for tensor in tensors]
        return moved[0][None] if alone else torch.stack(moved)

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0][None] if alone else torch.stack(list(tensors))

    own = [leaf.accumulators for leaf in leaves]
    families = [
        tuple((entered if full else stacked)(same) for same in zip(*family, strict=True))
        for full, family in zip((True, True, False, False), zip(*own, strict=True), strict=True)
    ]
    updated = Accumulators(*families)
    grad, param = (entered([getattr(leaf, name) for leaf in leaves]) for name in ("grad", "param"))
    count = _counts(leaves, dtype) if network.config.bias_correction else None
    steps = step.update(network, grad, param, updated, count, axes=layout.axes)
    for place, leaf in enumerate(leaves):
        if not alone:
            for old, new in zip(
                leaf.accumulators.row + leaf.accumulators.col, updated.row + updated.col, strict=True
            ):
                old.copy_(new[place])
        full = [tensor[place] for tensor in updated.momentum + updated.rms]
        _write_back(leaf, full, dtype=dtype, views=alone and layout.keeps_order)
    return [layout.leave(steps[place], leaf.param.shape) for place, leaf in enumerate(leaves)]


def _counts(leaves: Sequence[Leaf], dtype: torch.dtype) -> Tensor:
    device = leaves[0].param.device
    counts = torch.stack([leaf.count.to(device, dtype) for leaf in leaves])
    return counts.view(-1, *[1] * len(leaves[0].layout.shape))


def _write_back(leaf: Leaf, updated: Sequence[Tensor], *, dtype: torch.dtype, views: bool) -> None:
    """Copies momenta and rms that were updated in a copy, rounding them where they are kept smaller."""
    targets = leaf.accumulators.momentum + leaf.accumulators.rms
    if views and targets[0].dtype == dtype:
        return
    full = [leaf.layout.leave(new, leaf.param.shape) for new in updated]
    if targets[0].dtype == dtype:
        for old, new in zip(targets, full, strict=True):
            old.copy_(new)
    else:
        round_all([new.contiguous() for new in full], targets, leaf.count, leaf.number)
