"""Which elements of a parameter a process holds, and where its matrices' rows and columns are.

A shard is a product of index sets, one for each axis of the parameter, and stays one when axes are
merged into the rows and columns of a matrix. Where the matrices of a fused kernel lie side by side,
a shard may end inside of one: it is then several parts, each a product again.
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


class Part(NamedTuple):
    """A block of the layout's tensor: the product of some indices of each axis.

    Attributes:
        indices: For each axis of `Layout.shape`, the entries held, on the CPU.
        ranges: The same as slices, None where there are gaps.
        start: Where it begins along the output axis of the local tensor.
        splits: How many matrices of a fused kernel it cuts alike.
    """

    indices: tuple[Tensor, ...]
    ranges: tuple[slice | None, ...]
    start: int = 0
    splits: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the block."""
        return tuple(len(index) for index in self.indices)

    def matrices(self, shape: Sequence[int]) -> Tensor:
        """The numbers of its matrices, counted along all axes but the last two of the layout's shape."""
        return _ravel(self.indices[:-2], shape[:-2])

    def address(self, shape: Sequence[int]) -> tuple[Any, ...]:
        """What concerns the block in a tensor of the layout's first axes, some of length 1: an index."""
        rank = len(shape)
        ranges = [r if size > 1 else slice(0, 1) for r, size in zip(self.ranges[:rank], shape, strict=True)]
        if None not in ranges:
            return tuple(ranges)
        own = zip(self.indices[:rank], shape, strict=True)
        held = [index if size > 1 else index.new_zeros(1) for index, size in own]
        return tuple(index.view(-1, *[1] * (rank - 1 - axis)) for axis, index in enumerate(held))


class Shard(NamedTuple):
    """What one process holds of one parameter.

    Attributes:
        shape: Of the local tensor.
        layout: Of the whole parameter.
        parts: Blocks of the layout's tensor that make up the local one; none if that is empty.
        merged: With a view: how many batch, row and column entries the local tensor has.
        elements: For each axis of the parameter, the indices held.
    """

    shape: tuple[int, ...]
    layout: Layout
    parts: tuple[Part, ...]
    merged: tuple[int, ...]
    elements: tuple[Tensor, ...]

    def enter(self, local: Tensor) -> list[Tensor]:
        """The blocks of a local tensor, in the order of `parts`."""
        view = self.layout.view
        if view is None:
            return [local.reshape(part.shape) for part in self.parts]
        axis = 1 if view.output_first else 2
        whole = local.permute(view.permutation).reshape(self.merged)
        blocks = []
        for part in self.parts:
            length = part.shape[axis]
            block = whole.narrow(axis, part.start, part.splits * length)
            block = block.unflatten(axis, (part.splits, length))
            blocks.append((block if view.output_first else block.transpose(1, 2)).flatten(0, 1))
        return blocks

    def leave(self, blocks: Sequence[Tensor], like: Tensor) -> Tensor:
        """The inverse of `enter`; `like` gives dtype and device to an empty one."""
        view = self.layout.view
        if not blocks:
            return like.new_empty(self.shape)
        if view is None:
            return blocks[0].reshape(self.shape)
        axis, pieces = (1 if view.output_first else 2), []
        for part, block in zip(self.parts, blocks, strict=True):
            piece = block.unflatten(0, (-1, part.splits))
            piece = piece if view.output_first else piece.transpose(1, 2)
            pieces.append(piece.flatten(axis, axis + 1))
        permuted = torch.cat(pieces, axis).reshape([self.shape[axis] for axis in view.permutation])
        order = sorted(range(len(self.shape)), key=view.permutation.__getitem__)
        return permuted.permute(order)

    def numbers(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """The place of every local element in the whole parameter of this shape, flat, int32."""
        flat = _ravel(self.elements, shape)
        return flat.to(device, torch.int32)


def is_cut(placement: Any) -> bool:
    """Whether a placement of `torch.distributed.tensor` cuts an axis of the tensor."""
    return hasattr(placement, "dim")


def held_indices(
    shape: Sequence[int], placements: Sequence[Any], mesh_shape: Sequence[int], coordinate: Sequence[int]
) -> tuple[Tensor, ...]:
    """For each axis of a tensor, the indices that the process at a coordinate of the mesh holds.

    As `torch.distributed.tensor` places them: along each axis of the mesh in turn, in chunks of equal
    size, of which the last may be smaller and some empty.
    """
    held = [torch.arange(size) for size in shape]
    for placement, parts, place in zip(placements, mesh_shape, coordinate, strict=True):
        if is_cut(placement):
            held[placement.dim] = _chunk(held[placement.dim], placement, parts, place)
    return tuple(held)


def make_shard(
    shape: Sequence[int], layout: Layout, numbers: DimensionNumbers | None, held: tuple[Tensor, ...]
) -> Shard:
    """The shard of a parameter that consists of these indices of each axis.

    Args:
        shape: Of the whole parameter.
        layout: `make_layout(shape, numbers)`.
        numbers: Which axes are its matrix.
        held: Of `held_indices`.
    """
    local = tuple(len(index) for index in held)
    empty = 0 in local
    if layout.view is None or numbers is None:
        indices = (
            held if layout.axes is not None else (_ravel(held, shape), torch.zeros(1, dtype=torch.int64))
        )
        return Shard(local, layout, () if empty else (_make_part(indices),), (), held)
    axes = find_matrix_axes(shape, numbers)
    batch, reduction, output = (
        _ravel([held[axis] for axis in group], [shape[axis] for axis in group])
        for group in (axes.batch, axes.reduction, axes.output)
    )
    width = math.prod(shape[axis] for axis in axes.output) // axes.splits
    output_first = layout.view.output_first
    parts = []
    for start, split, rows in [] if empty else _cut(output, width):
        matrices = (batch[:, None] * axes.splits + split).flatten()
        sides = (rows, reduction) if output_first else (reduction, rows)
        parts.append(_make_part((matrices, *sides), start, len(split)))
    sides = (output, reduction) if output_first else (reduction, output)
    return Shard(local, layout, tuple(parts), (len(batch), *map(len, sides)), held)


def _cut(output: Tensor, width: int) -> list[tuple[int, Tensor, Tensor]]:
    """Runs of an output axis that lie in one matrix each; neighbours that are cut alike stay together.

    Returns:
        For each, where it begins, the numbers of its matrices, and which of their rows.
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


def _chunk(indices: Tensor, placement: Any, parts: int, place: int) -> Tensor:
    if getattr(placement, "split_factor", 1) > 1:  # FSDP's cut of an axis that a later mesh axis cuts first
        alike = type(placement)(0, split_factor=placement.split_factor)
        return alike._split_tensor(indices, parts, with_padding=False, contiguous=False)[0][place]
    chunks = indices.chunk(parts)
    return chunks[place] if place < len(chunks) else indices[:0]


def _ravel(indices: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The place of every element of a product of indices in a tensor of this shape, flat."""
    flat = torch.zeros(1, dtype=torch.int64)
    for index, size in zip(indices, shape, strict=True):
        flat = (flat[:, None] * size + index).flatten()
    return flat


def _make_part(indices: tuple[Tensor, ...], start: int = 0, splits: int = 1) -> Part:
    ranges = [slice(int(index[0]), int(index[-1]) + 1) for index in indices]
    gapless = [bool((index.diff() == 1).all()) for index in indices]
    kept = tuple(own if full else None for own, full in zip(ranges, gapless, strict=True))
    return Part(indices, kept, start, splits)


class Piece(NamedTuple):
    """What a process holds of one matrix.

    Attributes:
        part: The number of the part in `Shard.parts`.
        place: Which matrix of that part.
        rows: Indices of the matrix's rows.
        columns: Of its columns.
    """

    part: int
    place: int
    rows: Tensor
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the piece."""
        return len(self.rows), len(self.columns)


class Division:
    """How one parameter is divided.

    Args:
        shape: Of the whole parameter.
        layout: How the rule sees it.
        numbers: Which axes are its matrix.
        processes: Who holds it.
        placements: For each axis of their mesh, what it does to the parameter.

    Attributes:
        layout: As given.
        processes: As given.
        shape: As given.
        groups: Over which a sum over the shards goes, one after the other; none: nothing is cut.
        num_shards: Into how many it is cut.
        own: What this process holds.
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
        cut = [is_cut(kind) and size > 1 for kind, size in zip(placements, processes.shape, strict=True)]
        self.groups = tuple(group for group, does in zip(processes.axis_groups, cut, strict=True) if does)
        self.num_shards = math.prod(size for size, does in zip(processes.shape, cut, strict=True) if does)
        self._alike = [axis for axis, does in enumerate(cut) if not does]
        self.own = self._shard(processes.rank)

    @property
    def num_matrices(self) -> int:
        """Along all axes of the layout but the last two."""
        return math.prod(self.layout.shape[:-2])

    @functools.cached_property
    def holders(self) -> list[dict[int, list[Piece]]]:
        """For each matrix, what each process holds of it; those that hold nothing are left out."""
        found: list[dict[int, list[Piece]]] = [{} for _ in range(self.num_matrices)]
        for rank in range(self.processes.size):
            for number, part in enumerate(self._shard(rank).parts):
                for place, matrix in enumerate(part.matrices(self.layout.shape).tolist()):
                    piece = Piece(number, place, *part.indices[-2:])
                    found[matrix].setdefault(rank, []).append(piece)
        return found

    @functools.cached_property
    def in_full(self) -> list[list[int]]:
        """For each matrix, the processes that hold all of it."""
        size = math.prod(self.layout.shape[-2:])
        return [
            [rank for rank, pieces in holders.items() if sum(math.prod(p.shape) for p in pieces) == size]
            for holders in self.holders
        ]

    def sends(self, rank: int, owner: int) -> bool:
        """Whether an owner gets a process's part from it, rather than from another that holds the same."""
        ours, theirs = self.processes.coordinates[rank], self.processes.coordinates[owner]
        return all(ours[axis] == theirs[axis] for axis in self._alike)

    def _shard(self, rank: int) -> Shard:
        processes = self.processes
        held = held_indices(self.shape, self._placements, processes.shape, processes.coordinates[rank])
        return make_shard(self.shape, self.layout, self._numbers, held)
