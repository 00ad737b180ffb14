"""Sharding specs: the elements of a parameter that each process holds, as rows and columns of its matrices.

A `Shard`, the elements that one process holds, is a product of index sets, one per axis of the
parameter, and remains one when axes are merged into the rows and columns of a matrix. If the matrices of a
fused kernel lie side by side, a shard may end inside one: it then has several `Region`s, each again a
product of index sets. A `Tile` is the intersection of a region with one matrix. A `ShardingSpec` has the
shards of all processes and the groups for sums over the shards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from celo2.routing.dimension_numbers import DimensionNumbers, find_matrix_axes
from celo2.torch.dimensions import Layout
from celo2.torch.sharding.collectives import Processes


class Region(NamedTuple):
    """A region of the layout's tensor: a product of index sets, one per axis.

    Attributes:
        indices: For each axis of `Layout.shape`, the indices held, on the CPU.
        ranges: The same as slices; None for an axis whose indices have gaps.
        start: The start of the region along the output axis of the local tensor.
        splits: The number of matrices of a fused kernel that the region covers at the same rows.
    """

    indices: tuple[Tensor, ...]
    ranges: tuple[slice | None, ...]
    start: int = 0
    splits: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the region's block."""
        return tuple(len(index) for index in self.indices)

    def matrices(self, shape: Sequence[int]) -> Tensor:
        """Returns the region's flat matrix indices over the leading axes of the layout's shape."""
        return _ravel(self.indices[:-2], shape[:-2])

    def index_in(self, shape: Sequence[int]) -> tuple[Any, ...]:
        """Returns the region's index into a tensor with the layout's leading axes, some of length 1."""
        rank = len(shape)
        ranges = [r if size > 1 else slice(0, 1) for r, size in zip(self.ranges[:rank], shape, strict=True)]
        if None not in ranges:
            return tuple(ranges)
        own = zip(self.indices[:rank], shape, strict=True)
        held = [index if size > 1 else index.new_zeros(1) for index, size in own]
        return tuple(index.view(-1, *[1] * (rank - 1 - axis)) for axis, index in enumerate(held))


class Shard(NamedTuple):
    """The elements of one parameter that one process holds.

    Attributes:
        shape: The shape of the local tensor.
        layout: The layout of the whole parameter.
        regions: The regions of the layout's tensor that make up the local tensor; none if it is empty.
        merged: The local tensor's batch, row and column sizes; empty for a layout without a view.
        elements: For each axis of the parameter, the indices held.
    """

    shape: tuple[int, ...]
    layout: Layout
    regions: tuple[Region, ...]
    merged: tuple[int, ...]
    elements: tuple[Tensor, ...]

    def to_blocks(self, local: Tensor) -> list[Tensor]:
        """Splits a local tensor into one block per region, in the order of `regions`."""
        view = self.layout.view
        if view is None:
            return [local.reshape(region.shape) for region in self.regions]
        axis = 1 if view.output_first else 2
        whole = local.permute(view.permutation).reshape(self.merged)
        blocks = []
        for region in self.regions:
            length = region.shape[axis]
            block = whole.narrow(axis, region.start, region.splits * length)
            block = block.unflatten(axis, (region.splits, length))
            blocks.append((block if view.output_first else block.transpose(1, 2)).flatten(0, 1))
        return blocks

    def from_blocks(self, blocks: Sequence[Tensor], like: Tensor) -> Tensor:
        """Inverts `to_blocks`; empty shards get their dtype and device from `like`."""
        view = self.layout.view
        if not blocks:
            return like.new_empty(self.shape)
        if view is None:
            return blocks[0].reshape(self.shape)
        axis, chunks = (1 if view.output_first else 2), []
        for region, block in zip(self.regions, blocks, strict=True):
            chunk = block.unflatten(0, (-1, region.splits))
            chunk = chunk if view.output_first else chunk.transpose(1, 2)
            chunks.append(chunk.flatten(axis, axis + 1))
        permuted = torch.cat(chunks, axis).reshape([self.shape[axis] for axis in view.permutation])
        order = sorted(range(len(self.shape)), key=view.permutation.__getitem__)
        return permuted.permute(order)

    def flat_indices(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Returns the flat int32 index of every local element in the whole parameter of this shape."""
        flat = _ravel(self.elements, shape)
        return flat.to(device, torch.int32)


def is_shard(placement: Any) -> bool:
    """Returns whether a placement of `torch.distributed.tensor` shards an axis of the tensor."""
    return hasattr(placement, "dim")


def held_indices(
    shape: Sequence[int], placements: Sequence[Any], mesh_shape: Sequence[int], coordinate: Sequence[int]
) -> tuple[Tensor, ...]:
    """Returns, for each axis of a tensor, the indices that the process at a mesh coordinate holds.

    Placement follows `torch.distributed.tensor`: along each mesh axis in turn, in chunks of equal size, of
    which the last may be smaller and some empty.
    """
    held = [torch.arange(size) for size in shape]
    for placement, num_chunks, position in zip(placements, mesh_shape, coordinate, strict=True):
        if is_shard(placement):
            held[placement.dim] = _chunk(held[placement.dim], placement, num_chunks, position)
    return tuple(held)


def make_shard(
    shape: Sequence[int], layout: Layout, numbers: DimensionNumbers | None, held: tuple[Tensor, ...]
) -> Shard:
    """Makes the shard of a parameter that has these indices along each axis.

    Args:
        shape: The shape of the whole parameter.
        layout: `make_layout(shape, numbers)`.
        numbers: The parameter's dimension numbers.
        held: The indices of each axis, from `held_indices`.
    """
    local = tuple(len(index) for index in held)
    empty = 0 in local
    if layout.view is None or numbers is None:
        indices = (
            held if layout.axes is not None else (_ravel(held, shape), torch.zeros(1, dtype=torch.int64))
        )
        return Shard(local, layout, () if empty else (_make_region(indices),), (), held)
    axes = find_matrix_axes(shape, numbers)
    batch, reduction, output = (
        _ravel([held[axis] for axis in group], [shape[axis] for axis in group])
        for group in (axes.batch, axes.reduction, axes.output)
    )
    width = math.prod(shape[axis] for axis in axes.output) // axes.splits
    output_first = layout.view.output_first
    regions = []
    for start, split, rows in [] if empty else _cut(output, width):
        matrices = (batch[:, None] * axes.splits + split).flatten()
        sides = (rows, reduction) if output_first else (reduction, rows)
        regions.append(_make_region((matrices, *sides), start, len(split)))
    sides = (output, reduction) if output_first else (reduction, output)
    return Shard(local, layout, tuple(regions), (len(batch), *map(len, sides)), held)


def _cut(output: Tensor, width: int) -> list[tuple[int, Tensor, Tensor]]:
    """Splits the output indices held into runs within one matrix, and joins neighbours with equal rows.

    Returns:
        For each run, its start, the indices of its matrices, and the rows held of each.
    """
    numbers, lengths = torch.unique_consecutive(output // width, return_counts=True)
    runs: list[tuple[int, list[Tensor], Tensor]] = []
    start = 0
    for number, rows in zip(numbers, (output % width).split(lengths.tolist()), strict=True):
        if runs and torch.equal(runs[-1][2], rows):
            runs[-1][1].append(number)
        else:
            runs.append((start, [number], rows))
        start += len(rows)
    return [(start, torch.stack(found), rows) for start, found, rows in runs]


def _chunk(indices: Tensor, placement: Any, num_chunks: int, position: int) -> Tensor:
    if getattr(placement, "split_factor", 1) > 1:  # FSDP on an axis that a later mesh axis shards first
        alike = type(placement)(0, split_factor=placement.split_factor)
        return alike._split_tensor(indices, num_chunks, with_padding=False, contiguous=False)[0][position]
    chunks = indices.chunk(num_chunks)
    return chunks[position] if position < len(chunks) else indices[:0]


def _ravel(indices: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Returns the flat index in a tensor of this shape of every element of a product of indices."""
    flat = torch.zeros(1, dtype=torch.int64)
    for index, size in zip(indices, shape, strict=True):
        flat = (flat[:, None] * size + index).flatten()
    return flat


def _make_region(indices: tuple[Tensor, ...], start: int = 0, splits: int = 1) -> Region:
    ranges = [slice(int(index[0]), int(index[-1]) + 1) for index in indices]
    gapless = [bool((index.diff() == 1).all()) for index in indices]
    kept = tuple(own if full else None for own, full in zip(ranges, gapless, strict=True))
    return Region(indices, kept, start, splits)


class Tile(NamedTuple):
    """The rows and columns of one matrix that a region of a shard covers.

    Attributes:
        region: The index of the region in `Shard.regions`.
        position: The index of the matrix in that region.
        rows: The indices of the matrix's rows.
        columns: The indices of its columns.
    """

    region: int
    position: int
    rows: Tensor
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the tile."""
        return len(self.rows), len(self.columns)


class ShardingSpec:
    """The sharding of one parameter over a mesh of processes.

    Args:
        shape: The shape of the whole parameter.
        layout: Its layout.
        numbers: Its dimension numbers.
        processes: The processes that share it.
        placements: Its placement along each axis of their mesh.

    Attributes:
        layout: As given.
        processes: As given.
        shape: As given.
        groups: The groups for a sum over the shards, in sequence; none if no axis is sharded.
        num_shards: The number of distinct shards.
        shard: The shard of this process.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        layout: Layout,
        numbers: DimensionNumbers | None,
        processes: Processes,
        placements: Sequence[Any],
    ):
        self.shape, self.layout, self.processes = shape, layout, processes
        self._numbers, self._placements = numbers, tuple(placements)
        sharded = [
            is_shard(kind) and size > 1 for kind, size in zip(placements, processes.shape, strict=True)
        ]
        groups = zip(processes.axis_groups, sharded, strict=True)
        self.groups = tuple(group for group, does in groups if does)
        self.num_shards = math.prod(size for size, does in zip(processes.shape, sharded, strict=True) if does)
        self._replicated = [axis for axis, does in enumerate(sharded) if not does]
        self.shard = self._make_shard(processes.rank)

    @property
    def num_matrices(self) -> int:
        """The number of matrices: the product of all axes of the layout but the last two."""
        return math.prod(self.layout.shape[:-2])

    @functools.cached_property
    def holders(self) -> list[dict[int, list[Tile]]]:
        """For each matrix, the tiles of each rank that holds any of it."""
        found: list[dict[int, list[Tile]]] = [{} for _ in range(self.num_matrices)]
        for rank in range(self.processes.size):
            for number, region in enumerate(self._make_shard(rank).regions):
                for position, matrix in enumerate(region.matrices(self.layout.shape).tolist()):
                    tile = Tile(number, position, *region.indices[-2:])
                    found[matrix].setdefault(rank, []).append(tile)
        return found

    @functools.cached_property
    def full_holders(self) -> list[list[int]]:
        """For each matrix, the ranks that hold all of it."""
        size = math.prod(self.layout.shape[-2:])
        return [
            [rank for rank, tiles in holders.items() if sum(math.prod(t.shape) for t in tiles) == size]
            for holders in self.holders
        ]

    def sends(self, rank: int, owner: int) -> bool:
        """Returns whether an owner receives tiles from this rank, rather than from one of its replicas."""
        ours, theirs = self.processes.coordinates[rank], self.processes.coordinates[owner]
        return all(ours[axis] == theirs[axis] for axis in self._replicated)

    def _make_shard(self, rank: int) -> Shard:
        processes = self.processes
        held = held_indices(self.shape, self._placements, processes.shape, processes.coordinates[rank])
        return make_shard(self.shape, self.layout, self._numbers, held)
