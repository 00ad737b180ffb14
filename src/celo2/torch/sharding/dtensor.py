"""`DTensor` helpers, and the sharding specs of an optimizer's parameters (`DTensor`s or replicas)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from celo2.torch.dimensions import Layout
from celo2.torch.sharding.collectives import Processes, mesh_processes, replicas
from celo2.torch.sharding.newton_schulz import Buckets
from celo2.torch.sharding.spec import ShardingSpec, is_shard


class ShardingSpecs:
    """Cache of the sharding specs of an optimizer's parameters.

    Args:
        group: The processes that train replicas together and hold every plain tensor in full; None: this
            process alone. The meshes of `DTensor`s do not depend on it.

    Attributes:
        group: As given.
        buckets: The owner assignments of `newton_schulz.orthogonalize_all`.
    """

    def __init__(self, group: Any = None):
        self.group = group
        self._processes: dict[Any, Processes] = {}
        self._specs: dict[Any, ShardingSpec] = {}
        self.buckets: Buckets = {}

    def find(self, param: Any, layout: Layout, numbers: Any, *, orthogonalize: bool) -> ShardingSpec | None:
        """Returns a parameter's sharding spec, or None if this process computes its step alone.

        A parameter that no mesh axis shards only has a spec for Newton–Schulz.

        Args:
            param: The parameter.
            layout: Its layout.
            numbers: Its dimension numbers.
            orthogonalize: Whether its step is orthogonalised.
        """
        key, placements = self._key(param), (None,)
        if key is None:
            return None
        if is_dtensor(param):
            placements = _checked(param.placements)
        sharded = any(is_shard(placement) for placement in placements)
        if not sharded and not (orthogonalize and layout.axes):
            return None
        if key not in self._processes:
            self._processes[key] = mesh_processes(key) if is_dtensor(param) else replicas(key)
        processes = self._processes[key]
        if processes.size == 1:
            return None
        entry = key, placements, tuple(param.shape), numbers
        if entry not in self._specs:
            self._specs[entry] = ShardingSpec(tuple(param.shape), layout, numbers, processes, placements)
        return self._specs[entry]

    def _key(self, param: Any) -> Any:
        return param.device_mesh if is_dtensor(param) else self.group


def is_dtensor(tensor: Any) -> bool:
    """Returns whether a tensor is a `DTensor`; none exist before `torch.distributed.tensor` is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Tensor:
    """Returns the local tensor of a `DTensor`, sharing its memory; plain tensors are returned as they are."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_grad(grad: Any, param: Any) -> Tensor:
    """Returns the local gradient, placed like its parameter; it may have been partial sums, for example."""
    if is_dtensor(param) and is_dtensor(grad) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return local(grad)


def zeros(shape: Sequence[int], dtype: torch.dtype, like: Any, *, whole: bool = False) -> Tensor:
    """Makes a state tensor of zeros on a parameter's device.

    Args:
        shape: The shape of the whole state tensor: the parameter's, except for axes reduced to 1, which are
            not sharded, and trailing axes of length 1.
        dtype: The dtype of the state tensor.
        like: The parameter. The state of a `DTensor` has its placements.
        whole: Whether every process holds the whole state tensor instead.
    """
    if not is_dtensor(like):
        return torch.zeros(tuple(shape), dtype=dtype, device=like.device)
    from torch.distributed.tensor import DTensor, Replicate

    own = local(like)
    full = torch.Size(shape)
    axes = zip(own.shape, like.shape, full, strict=False)
    held = [part if size == extent else extent for part, size, extent in axes]
    extents = full if whole else (*held, *full[own.ndim :])
    placements = [Replicate()] * like.device_mesh.ndim if whole else like.placements
    data = torch.zeros(extents, dtype=dtype, device=own.device)
    strides = torch.empty(full, device="meta").stride()
    return DTensor.from_local(data, like.device_mesh, placements, run_check=False, shape=full, stride=strides)


def match(saved: Any, expected: Any) -> Tensor:
    """Returns a saved state tensor, placed like the expected one.

    Raises:
        ValueError: The state was saved from shards, and the parameter is a plain tensor.
    """
    if not is_dtensor(expected):
        if is_dtensor(saved):
            raise ValueError(
                "the state was saved from sharded parameters and these are not: load it with "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, or call full_tensor()."
            )
        return torch.as_tensor(saved)
    if is_dtensor(saved):
        return saved.redistribute(expected.device_mesh, expected.placements)
    from torch.distributed.tensor import distribute_tensor

    whole = torch.as_tensor(saved, device=expected.device)
    return distribute_tensor(whole, expected.device_mesh, expected.placements, src_data_rank=None)


def check_wrappers(module: nn.Module) -> None:
    """Raises a TypeError for parameters flattened by FSDP1, whose matrices are lost."""
    if any(type(layer).__name__ == "FullyShardedDataParallel" for layer in module.modules()):
        raise TypeError(
            "FullyShardedDataParallel flattens parameters, and the rule needs their matrices; use "
            "torch.distributed.fsdp.fully_shard (FSDP2), which keeps them."
        )


def _checked(placements: Sequence[Any]) -> tuple[Any, ...]:
    for placement in placements:
        if placement.is_partial():
            raise ValueError(f"a parameter cannot be placed as {placement}; use Shard or Replicate.")
    return tuple(placements)
