"""What an optimizer knows of the processes that share its parameters: `DTensor`s, or replicas."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from celo2.torch.dimensions import Layout
from celo2.torch.sharding.collectives import Processes, mesh_processes, replicas
from celo2.torch.sharding.newton_schulz import Rounds
from celo2.torch.sharding.spec import Division, is_cut


class Sharing:
    """The divisions of an optimizer's parameters, each made once.

    Args:
        group: The processes that train replicas together, by all of whom plain tensors are held;
            None: this process alone, or what the `DTensor`s say.

    Attributes:
        group: As given.
        rounds: How their matrices were dealt out, as `dealing` keeps it.
    """

    def __init__(self, group: Any = None):
        self.group = group
        self._processes: dict[Any, Processes] = {}
        self._divisions: dict[Any, Division] = {}
        self.rounds: Rounds = {}

    def find(self, param: Any, layout: Layout, numbers: Any, *, orthogonalize: bool) -> Division | None:
        """How a parameter is divided, None where this process computes its step alone.

        What is nowhere cut is divided only for Newton–Schulz.

        Args:
            param: The parameter.
            layout: How the rule sees it.
            numbers: Which axes are its matrix.
            orthogonalize: Whether its step is orthogonalised.
        """
        key, placements = self._key(param), (None,)
        if key is None:
            return None
        if is_divided(param):
            placements = _checked(param.placements)
        cut = any(is_cut(placement) for placement in placements)
        if not cut and not (orthogonalize and layout.axes):
            return None
        if key not in self._processes:
            self._processes[key] = mesh_processes(key) if is_divided(param) else replicas(key)
        processes = self._processes[key]
        if processes.size == 1:
            return None
        entry = key, placements, tuple(param.shape), numbers
        if entry not in self._divisions:
            self._divisions[entry] = Division(tuple(param.shape), layout, numbers, processes, placements)
        return self._divisions[entry]

    def _key(self, param: Any) -> Any:
        return param.device_mesh if is_divided(param) else self.group


def is_divided(tensor: Any) -> bool:
    """Whether a tensor is a `DTensor`; no such tensor exists before its module is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Tensor:
    """What this process holds, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if is_divided(tensor) else tensor


def local_grad(grad: Any, param: Any) -> Tensor:
    """A gradient, placed as its parameter: it may still be a sum over processes, say."""
    if is_divided(param) and is_divided(grad) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return local(grad)


def zeros(shape: Sequence[int], dtype: torch.dtype, like: Any, *, whole: bool = False) -> Tensor:
    """A new state tensor on the device of a parameter.

    Args:
        shape: Of the whole.
        dtype: Its own.
        like: The parameter. Of a `DTensor`, the state is placed alike; further axes of the shape have
            length 1.
        whole: Whether every process holds it in full instead.
    """
    if not is_divided(like):
        return torch.zeros(tuple(shape), dtype=dtype, device=like.device)
    from torch.distributed.tensor import DTensor, Replicate

    own = local(like)
    full = torch.Size(shape)
    extent = full if whole else (*own.shape, *full[own.ndim :])
    placements = [Replicate()] * like.device_mesh.ndim if whole else like.placements
    data = torch.zeros(extent, dtype=dtype, device=own.device)
    strides = torch.empty(full, device="meta").stride()
    return DTensor.from_local(data, like.device_mesh, placements, run_check=False, shape=full, stride=strides)


def match(saved: Any, expected: Any) -> Tensor:
    """A saved state tensor, placed as the expected one.

    Raises:
        ValueError: It was saved from shards, and the parameter is whole.
    """
    if not is_divided(expected):
        if is_divided(saved):
            raise ValueError(
                "the state was saved from sharded parameters and these are not: load it with "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, or call full_tensor()."
            )
        return torch.as_tensor(saved)
    if is_divided(saved):
        return saved.redistribute(expected.device_mesh, expected.placements)
    from torch.distributed.tensor import distribute_tensor

    whole = torch.as_tensor(saved, device=expected.device)
    return distribute_tensor(whole, expected.device_mesh, expected.placements, src_data_rank=None)


def check_wrappers(module: nn.Module) -> None:
    """Raises a TypeError for parameters that FSDP's first version has flattened: their matrices are gone."""
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
