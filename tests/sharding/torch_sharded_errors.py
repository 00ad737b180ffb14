"""How what several processes hold compares with what one process computed."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from celo2.torch import Celo2


def local_pair(ours: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """What this process holds of a tensor, and of the one expected."""
    if not isinstance(ours, DTensor):
        return ours, whole
    placed = distribute_tensor(whole, ours.device_mesh, ours.placements, src_data_rank=None)
    return ours.to_local(), placed.to_local()


def difference(ours: Tensor, expected: Tensor, size: Tensor) -> float:
    """Largest difference over the largest entry of `size`; infinite if it is not a number."""
    mine, theirs = local_pair(ours.detach(), expected.detach())
    if torch.equal(mine, theirs):  # both may be zero, as is state that no gradient has reached
        return 0.0
    error = ((mine.double() - theirs.double()).abs().max() / size.abs().max()).item()
    return error if np.isfinite(error) else float("inf")


def largest(values: list[float]) -> list[float]:
    """Over all processes."""
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together, op=dist.ReduceOp.MAX)
    return together.tolist()


def param_errors(module: nn.Module, twin: nn.Module, start: dict[str, Tensor]) -> dict[str, float]:
    """Of the parameters' changes."""
    triples = zip(module.parameters(), twin.parameters(), start.values(), strict=True)
    found = [difference(ours, theirs, theirs.detach() - old) for ours, theirs, old in triples]
    return dict(zip(start, largest(found), strict=True))


def state_error(optimizer: Celo2, twin: Celo2) -> float:
    """The largest of all state."""
    states = zip(optimizer.state.values(), twin.state.values(), strict=True)
    found = [difference(a[key], b[key], b[key]) for a, b in states for key in b]
    return max(largest(found))


def misplaced(optimizer: Celo2) -> list[str]:
    """State that is not placed as its parameter; means, norms and bases of matrices are everywhere whole."""
    wrong = []
    for param, state in optimizer.state.items():
        for key, value in state.items():
            if key == "step" or not isinstance(param, DTensor):
                continue
            whole = param.ndim > 1 and key.startswith(("row", "col", "radius", "left", "right"))
            wanted = (Replicate(),) * param.device_mesh.ndim if whole else param.placements
            if not isinstance(value, DTensor) or value.placements != tuple(wanted):
                wrong.append(key)
    return wrong
