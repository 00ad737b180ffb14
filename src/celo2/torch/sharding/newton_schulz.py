"""Newton–Schulz on sharded matrices: every matrix is orthogonalised by its owner rank.

Matrices are assigned to owner ranks so that the work is balanced. The owner of a matrix gathers it,
orthogonalises it and sends every process the tiles that it holds. This happens in buckets, in each of which
a process gathers one large matrix or several small ones. A matrix that some processes hold in full is owned
by one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import orthogonalize
from celo2.torch.sharding.collectives import Processes, all_to_all
from celo2.torch.sharding.spec import ShardingSpec, Tile

BUCKET_SIZE = 1 << 22  # elements of small matrices that a process gathers together


class _OwnedMatrix(NamedTuple):
    """A matrix and the rank that orthogonalises it.

    Attributes:
        request: The index of its tensor in the requests of `orthogonalize_all`.
        matrix: Its index among the matrices of that tensor.
        spec: The sharding spec of that tensor.
        owner: The rank that orthogonalises it.
    """

    request: int
    matrix: int
    spec: ShardingSpec
    owner: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.spec.layout.shape[-2:]
        return rows, columns

    @property
    def holders(self) -> dict[int, list[Tile]]:
        return self.spec.holders[self.matrix]

    @property
    def is_whole(self) -> bool:
        """Whether the owner holds the whole matrix."""
        return self.owner in self.spec.full_holders[self.matrix]

    def sends(self, rank: int) -> bool:
        """Returns whether a rank sends its tiles to the owner."""
        if rank not in self.holders:
            return False
        return rank == self.owner if self.is_whole else self.spec.sends(rank, self.owner)


Buckets = dict[tuple[ShardingSpec, ...], list[list[_OwnedMatrix]]]  # owner assignments, kept for later steps


class _Transfer(NamedTuple):
    """A tile to copy between ranks; `tile.region` is an index into the regions of the rank that holds it."""

    source: int
    target: int
    matrix: _OwnedMatrix
    tile: Tile


def orthogonalize_all(
    requests: Sequence[tuple[ShardingSpec, Sequence[Tensor]]],
    config: RuleConfig,
    like: Tensor,
    buckets: Buckets,
) -> list[list[Tensor]]:
    """Orthogonalises the matrices of tensors shared by the same processes.

    Args:
        requests: The sharding spec and the local blocks of each tensor, with the same specs in the same
            order in every process.
        config: The Newton–Schulz options.
        like: A tensor with the dtype and device of all blocks.
        buckets: The owner assignments of earlier calls; a new one is added.

    Returns:
        The local blocks of each orthogonalised tensor.
    """
    processes = requests[0][0].processes
    results = [[block.new_empty(block.shape) for block in blocks] for _, blocks in requests]
    specs = tuple(spec for spec, _ in requests)
    if specs not in buckets:
        buckets[specs] = _assign_owners(specs)
    for bucket in buckets[specs]:
        matrices = {
            matrix: like.new_empty(matrix.shape) for matrix in bucket if matrix.owner == processes.rank
        }

        def read_tile(transfer: _Transfer) -> Tensor:
            return _flat(requests[transfer.matrix.request][1][transfer.tile.region])[transfer.tile.position]

        def write_matrix(
            transfer: _Transfer, block: Tensor, matrices: dict[_OwnedMatrix, Tensor] = matrices
        ) -> None:
            matrices[transfer.matrix][transfer.tile.rows[:, None], transfer.tile.columns] = block

        def read_matrix(transfer: _Transfer, matrices: dict[_OwnedMatrix, Tensor] = matrices) -> Tensor:
            return matrices[transfer.matrix][transfer.tile.rows[:, None], transfer.tile.columns]

        def write_tile(transfer: _Transfer, block: Tensor) -> None:
            _flat(results[transfer.matrix.request][transfer.tile.region])[transfer.tile.position] = block

        private = all(matrix.is_whole for matrix in bucket)
        _copy(
            _gather_transfers(bucket, processes.rank), read_tile, write_matrix, processes, like, local=private
        )
        _orthogonalize(matrices, config)
        private = all(list(matrix.holders) == [matrix.owner] for matrix in bucket)
        _copy(
            _scatter_transfers(bucket, processes.rank),
            read_matrix,
            write_tile,
            processes,
            like,
            local=private,
        )
    return results


def _gather_transfers(bucket: Sequence[_OwnedMatrix], rank: int) -> Iterator[_Transfer]:
    """Yields one rank's outgoing and incoming transfers to the owners."""
    for matrix in bucket:
        for sender in matrix.holders if matrix.owner == rank else [rank]:
            if matrix.sends(sender):
                yield from (_Transfer(sender, matrix.owner, matrix, tile) for tile in matrix.holders[sender])


def _scatter_transfers(bucket: Sequence[_OwnedMatrix], rank: int) -> Iterator[_Transfer]:
    """Yields one rank's outgoing and incoming transfers from the owners."""
    for matrix in bucket:
        for holder in matrix.holders if matrix.owner == rank else [rank]:
            tiles = matrix.holders.get(holder, [])
            yield from (_Transfer(matrix.owner, holder, matrix, tile) for tile in tiles)


def _copy(
    transfers: Iterator[_Transfer],
    read: Callable[[_Transfer], Tensor],
    write: Callable[[_Transfer, Tensor], None],
    processes: Processes,
    like: Tensor,
    *,
    local: bool,
) -> None:
    """Copies tiles between processes.

    Args:
        transfers: The transfers from and to this process.
        read: Returns the tile that a transfer sends.
        write: Stores the tile that a transfer delivers.
        processes: The participating processes.
        like: A tensor with the dtype and device of all tiles.
        local: Whether all transfers of all processes stay within the process.
    """
    listed = list(transfers)
    if local:
        for transfer in listed:
            write(transfer, read(transfer))
        return
    ranks = range(processes.size)
    outgoing: list[list[Tensor]] = [[] for _ in ranks]
    incoming: list[list[_Transfer]] = [[] for _ in ranks]
    for transfer in listed:
        if transfer.source == processes.rank:
            outgoing[transfer.target].append(read(transfer))
        if transfer.target == processes.rank:
            incoming[transfer.source].append(transfer)
    sizes = [[math.prod(transfer.tile.shape) for transfer in own] for own in incoming]
    received = all_to_all(outgoing, [sum(own) for own in sizes], processes, like)
    for flat, own, arrived in zip(received, sizes, incoming, strict=True):
        for block, transfer in zip(flat.split(own), arrived, strict=True) if arrived else ():
            write(transfer, block.view(transfer.tile.shape))


def _orthogonalize(matrices: dict[_OwnedMatrix, Tensor], config: RuleConfig) -> None:
    """Orthogonalises the matrices in place, stacking those of equal shape."""
    shapes: dict[tuple[int, int], list[_OwnedMatrix]] = {}
    for matrix in matrices:
        shapes.setdefault(matrix.shape, []).append(matrix)
    for alike in shapes.values():
        done = orthogonalize.compute(torch.stack([matrices[matrix] for matrix in alike]), config)
        matrices.update(zip(alike, done, strict=True))


def _assign_owners(specs: tuple[ShardingSpec, ...]) -> list[list[_OwnedMatrix]]:
    """Assigns every matrix to an owner rank, costly ones first, and groups the matrices into buckets.

    In one bucket, a rank owns matrices with at most `BUCKET_SIZE` elements in total, or one larger matrix.
    """
    size = specs[0].processes.size
    todo = [(request, matrix) for request, d in enumerate(specs) for matrix in range(d.num_matrices)]
    load, number, room = [0.0] * size, [0] * size, [BUCKET_SIZE] * size
    buckets: list[list[_OwnedMatrix]] = []
    for request, matrix in sorted(todo, key=lambda entry: -_cost(specs[entry[0]])):
        spec = specs[request]
        owner = min(spec.full_holders[matrix] or range(size), key=load.__getitem__)
        load[owner] += _cost(spec)
        elements = math.prod(spec.layout.shape[-2:])
        if room[owner] < min(elements, BUCKET_SIZE):
            number[owner], room[owner] = number[owner] + 1, BUCKET_SIZE
        room[owner] -= elements
        buckets += [[] for _ in range(number[owner] + 1 - len(buckets))]
        buckets[number[owner]].append(_OwnedMatrix(request, matrix, spec, owner))
    return buckets


def _flat(block: Tensor) -> Tensor:
    """Returns a block as `(matrices, rows, columns)`."""
    return block.reshape(-1, *block.shape[-2:])


def _cost(spec: ShardingSpec) -> int:
    """Returns the multiplications in the plain form for one of the spec's matrices, up to a factor."""
    *_, rows, columns = spec.layout.shape
    return rows * columns * min(rows, columns)
