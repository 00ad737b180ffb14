"""Updates many parameters by the rule, stacking small ones of equal shape.

Updating a small tensor launches some hundred operations, so the vectors of a deep network would cost more
than its matrices. Large tensors are updated in place, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.torch import step
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Layout
from celo2.torch.kernels import dispatch
from celo2.torch.kernels.dispatch import KERNELS, Implementation
from celo2.torch.quantization import decode
from celo2.torch.rounding import round_all
from celo2.torch.three_pass import Matrix
from celo2.torch.weights import Network

# Elements of the largest tensor worth copying. Measured by `benchmarks/torch_step.py --programs
# plain-alone plain numba-alone numba --size 8x32x32 8x128x128 8x181x181` (one thread, commit 4549e84):
# with stacking, the plain program took 0.18, 0.92 and 1.13 times as long as one by one, and Numba's kernels
# 0.18, 0.34 and 0.57 times.
STACK_LIMIT = 1 << 15
# Elements of leaves whose steps exist at the same time. A memory bound (16 and 256 MiB in float32), not a
# measured optimum.
TOGETHER_LIMIT = {"cpu": 1 << 22, "gpu": 1 << 26}


class Leaf(NamedTuple):
    """One parameter with everything that its update needs.

    Attributes:
        grad: The gradient, not negated.
        param: The parameter, with the same shape and device.
        accumulators: In the parameter's shape (momentum, rms) and the layout's (row, col); updated
            in place. Momentum and rms may be bfloat16, and momentum `Quantized`; everything else has the
            working dtype.
        count: The step count including this update, from 1, a scalar tensor.
        layout: The parameter's layout.
        number: The parameter's index in the optimizer, which seeds the stochastic rounding.
    """

    grad: Tensor
    param: Tensor
    accumulators: Accumulators
    count: Tensor  # type: ignore[assignment]  # tuple.count is not meant
    layout: Layout
    number: int = 0


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which the rule computes: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def iterate_leaves(
    network: Network, leaves: Sequence[Leaf], *, stack: bool = True, kernels: bool = True
) -> Iterator[tuple[Leaf, Tensor]]:
    """Yields each leaf with its step, in any order; only the steps of one group exist at a time.

    Args:
        network: The weights and the options.
        leaves: The parameters to update; their accumulators are updated in place.
        stack: Whether small tensors of equal shape may be copied into one stack.
        kernels: Whether compiled kernels may be used.
    """

    def choose(leaf: Leaf) -> Implementation:
        return dispatch.choose(network, leaf.param, leaf.layout, kernels=kernels)

    for group in _group(leaves, choose, stack):
        yield from zip(group, _update(network, group, choose(group[0])), strict=True)


def _group(leaves: Sequence[Leaf], choose: Callable[[Leaf], Implementation], stack: bool) -> list[list[Leaf]]:
    """Groups leaves to update together: small ones of equal shape, and with kernels also large ones."""
    groups: dict[Hashable, list[Leaf]] = {}
    for index, leaf in enumerate(leaves):
        grad, param, accumulators, _, layout, _ = leaf
        stored = accumulators.momentum[0].dtype
        key: Hashable = (param.shape, param.dtype, param.device, grad.dtype, stored, layout)
        if not (stack and (_is_small(leaf) or choose(leaf) in KERNELS.values())):
            key = index
        group = groups.setdefault(key, [])
        limit = TOGETHER_LIMIT["cpu" if param.device.type == "cpu" else "gpu"]
        if group and (len(group) + 1) * param.numel() > limit:
            groups[index] = groups.pop(key)
            groups[key] = group = []
        group.append(leaf)
    return list(groups.values())


def _is_small(leaf: Leaf) -> bool:
    return leaf.param.numel() <= STACK_LIMIT


def _update(network: Network, leaves: Sequence[Leaf], chosen: Implementation) -> list[Tensor]:
    """Computes the steps of leaves of one layout; small ones are copied into one stack."""
    layout, config = leaves[0].layout, network.config
    stacks = [leaves] if _is_small(leaves[0]) else [[leaf] for leaf in leaves]
    # Triton's kernels convert their inputs.
    entered = [_enter(own, convert=chosen != "triton") for own in stacks]
    if chosen == "plain":
        counts = [_counts(own) if config.bias_correction else None for own in stacks]
        pairs = zip(entered, counts, strict=True)
        results = [step.update(network, *own, count, axes=layout.axes) for own, count in pairs]
    else:
        passes = dispatch.make_passes(network, chosen, factored=layout.axes is not None)
        results = step.update_all(network, entered, passes, axes=layout.axes)
    for own, (_, _, updated), (_, busy) in zip(stacks, entered, results, strict=True):
        for place, leaf in enumerate(own):
            _write_back(leaf, Accumulators(*(tuple(x[place] for x in family) for family in updated)))
        hold_counts(own, busy)
    flat = [own for stacked, _ in results for own in stacked]
    return [layout.leave(own, leaf.param.shape) for own, leaf in zip(flat, leaves, strict=True)]


def hold_counts(leaves: Sequence[Leaf], busy: Tensor | None) -> None:
    """Reverts the step counts of parameters without a busy matrix.

    A count on a different device than `busy` is not reverted, since that would wait for the device.

    Args:
        leaves: The leaves after their update.
        busy: The result of `accumulators.find_busy`, `(leaves, ..., 1, 1)`; None: all were busy.
    """
    if busy is None or (busy.device.type == "cpu" and bool(busy.all())):  # waits for no device
        return
    if leaves[0].count.device == busy.device:
        idle = 1.0 - busy.flatten(1).amax(1).to(leaves[0].count.dtype)
        for leaf, own in zip(leaves, idle.unbind(), strict=True):
            leaf.count.sub_(own)


def _enter(leaves: Sequence[Leaf], *, convert: bool) -> Matrix:
    """Stacks leaves in their layout, with contiguous accumulators in the working dtype."""
    layout, dtype = leaves[0].layout, working_dtype(leaves[0].param.dtype)

    def stack(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))

    def enter(tensors: Sequence[Tensor], convert: bool = True) -> Tensor:
        entered = [layout.enter(decode(tensor, dtype)) for tensor in tensors]
        return stack([tensor.to(dtype) for tensor in entered] if convert else entered)

    momentum, rms, row, col = zip(*(leaf.accumulators for leaf in leaves), strict=True)
    full = (
        tuple(enter(same).contiguous() for same in zip(*family, strict=True)) for family in (momentum, rms)
    )
    vectors = (tuple(stack(same) for same in zip(*family, strict=True)) for family in (row, col))
    grad, param = (enter([getattr(leaf, name) for leaf in leaves], convert) for name in ("grad", "param"))
    return Matrix(grad, param, Accumulators(*full, *vectors))


def _counts(leaves: Sequence[Leaf]) -> Tensor:
    device, dtype = leaves[0].param.device, working_dtype(leaves[0].param.dtype)
    counts = torch.stack([leaf.count.to(device, dtype) for leaf in leaves])
    return counts.view(-1, *[1] * len(leaves[0].layout.shape))


def _write_back(leaf: Leaf, updated: Accumulators) -> None:
    """Copies updated accumulators back, rounding momenta and rms if the state's dtype is narrower."""
    own = leaf.accumulators
    full, targets = updated.momentum + updated.rms, own.momentum + own.rms
    if targets[0].dtype != full[0].dtype:
        moved = [leaf.layout.leave(new, leaf.param.shape).contiguous() for new in full]
        round_all(moved, targets, leaf.count, leaf.number)
    else:
        for old, new in zip(targets, full, strict=True):
            if old.data_ptr() != new.data_ptr():
                old.copy_(leaf.layout.leave(new, leaf.param.shape))
    for old, new in zip(own.row + own.col, updated.row + updated.col, strict=True):
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)
