"""How a parameter is divided among processes: who holds which part of which matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from celo2.dimension_numbers import DimensionNumbers
from celo2.torch.dimensions import Layout
from celo2.torch.processes import Processes
from celo2.torch.shards import Shard, held_indices, is_cut, make_shard

__all__ = ["Division", "Piece"]


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
