"""Finds the parameters whose gradients are not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from celo2.torch.sharding.dtensor import is_dtensor, local_grad


def find_nonfinite(params: Iterable[Any]) -> set[Tensor]:
    """Returns the parameters whose dense gradient contains an infinity or NaN.

    Waits for each device once. All processes that share a `DTensor` must call this together, and get the
    same result.

    Args:
        params: The parameters, the same in the same order in every process.
    """
    together: dict[tuple[bool, Any], list[Any]] = {}
    for param in params:
        if param.grad is not None and param.grad.layout == torch.strided:
            place = param.device_mesh if is_dtensor(param) else param.device
            together.setdefault((is_dtensor(param), place), []).append(param)
    found: set[Tensor] = set()
    for (sharded, place), own in together.items():
        finite = torch.stack([torch.isfinite(local_grad(param.grad, param)).all() for param in own]).int()
        for axis in range(place.ndim) if sharded else ():
            dist.all_reduce(finite, op=dist.ReduceOp.MIN, group=place.get_group(axis))
        found.update(param for param, whole in zip(own, finite.tolist(), strict=True) if not whole)
    return found
