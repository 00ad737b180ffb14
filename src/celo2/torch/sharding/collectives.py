"""The processes that share a parameter, and their sums.

They form a mesh, as in `torch.distributed.device_mesh`: a parameter is cut along some of the mesh's
axes and the same along the others. Replicated training is a mesh of one axis that cuts nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Processes(NamedTuple):
    """The processes of a mesh, numbered as in `group`.

    Attributes:
        shape: Of the mesh.
        coordinates: Of every process in the mesh.
        rank: This process's number.
        group: All of them.
        axis_groups: Those that differ from this one in the mesh's first coordinate alone, in the second …
    """

    shape: tuple[int, ...]
    coordinates: tuple[tuple[int, ...], ...]
    rank: int
    group: Any
    axis_groups: tuple[Any, ...]

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.coordinates)


def mesh_processes(mesh: Any) -> Processes:
    """The processes of a `DeviceMesh`; every process of the mesh calls it."""
    group: Any = None
    if mesh.ndim == 1:
        group = mesh.get_group()
    elif mesh.size() == dist.get_world_size():
        group = dist.group.WORLD
    else:
        group = dist.new_group(sorted(mesh.mesh.flatten().tolist()), use_local_synchronization=True)
    places = {rank: tuple(place) for place, rank in _places(mesh.mesh)}
    members = dist.get_process_group_ranks(group)
    groups = tuple(mesh.get_group(axis) for axis in range(mesh.ndim))
    coordinates = tuple(places[rank] for rank in members)
    return Processes(tuple(mesh.mesh.shape), coordinates, dist.get_rank(group), group, groups)


def replicas(group: Any) -> Processes:
    """The processes of a group that all hold the whole parameter."""
    size = dist.get_world_size(group)
    coordinates = tuple((rank,) for rank in range(size))
    return Processes((size,), coordinates, dist.get_rank(group), group, (group,))


def sum_all(
    requests: Mapping[int, tuple[Sequence[Any], Sequence[Tensor]]],
) -> dict[int, list[Tensor]]:
    """Sums tensors over processes; those of equal groups and dtype go together.

    Args:
        requests: For each number, groups to sum over one after the other, and what; the same numbers
            in the same order in every process.

    Returns:
        For each number, the sums, of the same shapes.
    """
    together: dict[Hashable, list[int]] = {}
    for number, (groups, values) in requests.items():
        key = (*(id(group) for group in groups), values[0].dtype, values[0].device)
        together.setdefault(key, []).append(number)
    answers: dict[int, list[Tensor]] = {}
    for numbers in together.values():
        groups = requests[numbers[0]][0]
        values = [value for number in numbers for value in requests[number][1]]
        sums = iter(_sum(values, groups) if groups else values)
        answers.update({number: [next(sums) for _ in requests[number][1]] for number in numbers})
    return answers


def exchange(
    outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[int], processes: Processes, like: Tensor
):
    """Sends tensors to every process and returns what every process sent here, flat.

    Args:
        outgoing: For each process, what it gets.
        incoming: For each process, how many numbers it sends.
        processes: Who takes part.
        like: Dtype and device.

    Returns:
        One flat tensor for each process.
    """
    sizes = [sum(tensor.numel() for tensor in tensors) for tensors in outgoing]
    flat = [tensor.flatten() for tensors in outgoing for tensor in tensors]
    sent = torch.cat(flat) if flat else like.new_empty(0)
    received = like.new_empty(sum(incoming))
    dist.all_to_all_single(received, sent, list(incoming), sizes, group=processes.group)
    return received.split(list(incoming))


def _sum(values: Sequence[Tensor], groups: Sequence[Any]) -> list[Tensor]:
    flat = torch.cat([value.flatten() for value in values])
    for group in groups:
        dist.all_reduce(flat, group=group)
    parts = flat.split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def _places(ranks: Tensor) -> list[tuple[list[int], int]]:
    return list(zip(torch.ones_like(ranks).nonzero().tolist(), ranks.flatten().tolist(), strict=True))


class Sums(NamedTuple):
    """Asks for these tensors, summed over the shards."""

    values: list[Tensor]


class Matrices(NamedTuple):
    """Asks for the tensor of which these are this process's parts, orthogonalised: its parts again."""

    parts: list[Tensor]


Request = Sums | Matrices
Asking = Generator[Request, list[Tensor], Any]
