"""The rule on many parameters: small ones of equal shape are stacked and updated together.

A small tensor costs the launch of some hundred operations, so the vectors of a deep network would
cost more than its matrices. Large tensors are updated where they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.torch import blocks, step
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Layout
from celo2.torch.network import Network
from celo2.torch.rounding import round_all

__all__ = ["STACK_LIMIT", "Leaf", "choose_direction", "update_leaves", "working_dtype"]

STACK_LIMIT = 1 << 15  # elements of the largest tensor that is worth a copy


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


def update_leaves(network: Network, leaves: Sequence[Leaf], *, stack: bool = True) -> list[Tensor]:
    """The un-negated step of every leaf, in order, in its shape and the working dtype.

    Args:
        network: The weights and the options.
        leaves: What is updated; their accumulators change.
        stack: Whether small tensors of equal shape may be copied together.
    """
    steps: dict[int, Tensor] = {}
    for indices in _group(leaves, stack):
        together = _update(network, [leaves[index] for index in indices])
        steps.update(zip(indices, together, strict=True))
    return [steps[index] for index in range(len(leaves))]


def _group(leaves: Sequence[Leaf], stack: bool) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for index, (grad, param, accumulators, _, layout, _) in enumerate(leaves):
        stored = accumulators.momentum[0].dtype
        same = (param.shape, param.dtype, param.device, grad.dtype, stored, layout)
        groups.setdefault(same if stack and param.numel() <= STACK_LIMIT else index, []).append(index)
    return list(groups.values())


def _update(network: Network, leaves: Sequence[Leaf]) -> list[Tensor]:
    """`step.update` on leaves of one layout, and their accumulators written back."""
    layout = leaves[0].layout
    dtype = working_dtype(leaves[0].param.dtype)

    def entered(tensors: Sequence[Tensor]) -> Tensor:
        moved = [layout.enter(tensor).to(dtype) for tensor in tensors]
        return moved[0][None] if len(moved) == 1 else torch.stack(moved)

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))

    own = [leaf.accumulators for leaf in leaves]
    families = [
        tuple((entered if full else stacked)(same) for same in zip(*family, strict=True))
        for full, family in zip((True, True, False, False), zip(*own, strict=True), strict=True)
    ]
    accumulators = Accumulators(*families)
    steps = update_stack(
        network,
        entered([leaf.grad for leaf in leaves]),
        entered([leaf.param for leaf in leaves]),
        accumulators,
        _counts(leaves, dtype) if network.config.bias_correction else None,
        layout,
    )
    for place, leaf in enumerate(leaves):
        _write_back(leaf, accumulators, place, alone=len(leaves) == 1, dtype=dtype)
    return [layout.leave(steps[place], leaf.param.shape) for place, leaf in enumerate(leaves)]


def update_stack(
    network: Network,
    grad: Tensor,
    param: Tensor,
    accumulators: Accumulators,
    count: Tensor | None,
    layout: Layout,
) -> Tensor:
    """Gradient, parameter, state → step: the one place that chooses how it is computed.

    Arguments and result are those of `step.update`. A backend for another device belongs here.
    """
    direction = choose_direction(layout, grad)
    return step.update(network, grad, param, accumulators, count, axes=layout.axes, direction=direction)


def choose_direction(layout: Layout, grad: Tensor) -> step.Direction:
    """Features and network, as fast as they are on the gradient's device."""
    in_blocks = grad.device.type == "cpu" and layout.by_matrix
    return blocks.compute_direction if in_blocks else step.compute_direction


def _counts(leaves: Sequence[Leaf], dtype: torch.dtype) -> Tensor:
    device = leaves[0].param.device
    counts = torch.stack([leaf.count.to(device, dtype) for leaf in leaves])
    return counts.view(-1, *[1] * len(leaves[0].layout.shape))


def _write_back(leaf: Leaf, updated: Accumulators, place: int, *, alone: bool, dtype: torch.dtype) -> None:
    """Copies what was updated in a copy, rounding momentum and rms where they are kept smaller."""
    shape = leaf.param.shape
    targets = (*leaf.accumulators.momentum, *leaf.accumulators.rms)
    if not alone:
        for old, new in zip(
            leaf.accumulators.row + leaf.accumulators.col, updated.row + updated.col, strict=True
        ):
            old.copy_(new[place])
    if alone and leaf.layout.keeps_order and targets[0].dtype == dtype:
        return  # they were views
    full = [leaf.layout.leave(new[place], shape) for new in (*updated.momentum, *updated.rms)]
    if targets[0].dtype == dtype:
        for old, new in zip(targets, full, strict=True):
            old.copy_(new)
    else:
        round_all([new.contiguous() for new in full], targets, leaf.count, leaf.number)
