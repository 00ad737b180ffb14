"""Process meshes, batched collectives, and the collective requests of sharded updates.

The processes that share a parameter form a mesh, as in `torch.distributed.device_mesh`: the parameter is
sharded along some mesh axes and replicated along the others. Replicated training is a mesh with one
axis, along which nothing is sharded. The update of a sharded parameter is a generator, an `UpdateTask`,
that yields `AllReduce` and `Orthogonalize` requests; `runtime` batches and answers them.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Processes(NamedTuple):
    """The processes of a mesh, ranked as in `group`.

    Attributes:
        shape: The shape of the mesh.
        coordinates: The mesh coordinates of every rank.
        rank: The rank of this process.
        group: The process group of the whole mesh.
        axis_groups: One process group per mesh axis, with the ranks that differ from this one only along it.
    """

    shape: tuple[int, ...]
    coordinates: tuple[tuple[int, ...], ...]
    rank: int
    group: Any
    axis_groups: tuple[Any, ...]

    @property
    def size(self) -> int:
        """The number of processes."""
        return len(self.coordinates)


def mesh_processes(mesh: Any) -> Processes:
    """Returns the processes of a `DeviceMesh`; every process in the mesh must call it."""
    group: Any = None
    if mesh.ndim == 1:
        group = mesh.get_group()
    elif mesh.size() == dist.get_world_size():
        group = dist.group.WORLD
    else:
        group = dist.new_group(sorted(mesh.mesh.flatten().tolist()), use_local_synchronization=True)
    places = {rank: tuple(place) for place, rank in _mesh_places(mesh.mesh)}
    members = dist.get_process_group_ranks(group)
    groups = tuple(mesh.get_group(axis) for axis in range(mesh.ndim))
    coordinates = tuple(places[rank] for rank in members)
    return Processes(tuple(mesh.mesh.shape), coordinates, dist.get_rank(group), group, groups)


def replicas(group: Any) -> Processes:
    """Returns the processes of a group in which every process holds the whole parameter."""
    size = dist.get_world_size(group)
    coordinates = tuple((rank,) for rank in range(size))
    return Processes((size,), coordinates, dist.get_rank(group), group, (group,))


def all_reduce(
    requests: Mapping[int, tuple[Sequence[Any], Sequence[Tensor]]],
) -> dict[int, list[Tensor]]:
    """Sums tensors over processes; tensors with equal groups, dtype and device share one all-reduce.

    Args:
        requests: For each request number, the groups to sum over in sequence, and the tensors. Every process
            passes the same numbers in the same order.

    Returns:
        For each request number, the sums, in the shapes of its tensors.
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


def all_to_all(
    outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[int], processes: Processes, like: Tensor
):
    """Sends tensors to every process and receives theirs in one all-to-all.

    Args:
        outgoing: For each rank, the tensors to send to it.
        incoming: For each rank, the number of elements to receive from it.
        processes: The participating processes.
        like: A tensor with the dtype and device of all tensors.

    Returns:
        For each rank, one flat tensor of the elements received from it.
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
    sums = flat.split([value.numel() for value in values])
    return [total.view(value.shape) for total, value in zip(sums, values, strict=True)]


def _mesh_places(ranks: Tensor) -> list[tuple[list[int], int]]:
    return list(zip(torch.ones_like(ranks).nonzero().tolist(), ranks.flatten().tolist(), strict=True))


class AllReduce(NamedTuple):
    """Request for the sums of these tensors over all shards."""

    values: list[Tensor]


class Orthogonalize(NamedTuple):
    """Request for the orthogonalisation of a tensor, given and returned as this process's blocks."""

    blocks: list[Tensor]


Request = AllReduce | Orthogonalize
UpdateTask = Generator[Request, list[Tensor], Any]
