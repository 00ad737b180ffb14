"""Newton–Schulz on matrices that several processes share: each matrix is one process's work.

Matrices are dealt out so that the work is equal. The owner of a matrix gathers it, orthogonalises it
and sends everyone the part that they hold. This goes in rounds, in which a process has one matrix in
full, or several small ones. A matrix that some process holds in full anyway is owned by such a one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import orthogonalize
from celo2.torch.sharding.collectives import Processes, exchange
from celo2.torch.sharding.spec import Division, Piece

ROUND_SIZE = 1 << 22  # elements of the small matrices that a process gathers together


class _Job(NamedTuple):
    """One matrix, and whose work it is."""

    request: int
    matrix: int
    division: Division
    owner: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.division.layout.shape[-2:]
        return rows, columns

    @property
    def holders(self) -> dict[int, list[Piece]]:
        return self.division.holders[self.matrix]

    @property
    def is_whole(self) -> bool:
        """Whether its owner holds all of it."""
        return self.owner in self.division.in_full[self.matrix]

    def sends(self, rank: int) -> bool:
        """Whether a process sends its part to the owner."""
        if rank not in self.holders:
            return False
        return rank == self.owner if self.is_whole else self.division.sends(rank, self.owner)


Rounds = dict[tuple[Division, ...], list[list[_Job]]]  # how divisions were dealt out, for the next step


class _Transfer(NamedTuple):
    """A piece on its way; `piece` counts in the parts of the process that holds it."""

    source: int
    target: int
    job: _Job
    piece: Piece


def orthogonalize_all(
    requests: Sequence[tuple[Division, Sequence[Tensor]]], config: RuleConfig, like: Tensor, rounds: Rounds
) -> list[list[Tensor]]:
    """Orthogonalises matrices that the same processes share.

    Args:
        requests: Divisions, and the parts that this process holds of each tensor; the same divisions
            in the same order in every process.
        config: Of Newton–Schulz.
        like: Dtype and device of all parts.
        rounds: Of the calls before; this one's are added.

    Returns:
        The parts of the results.
    """
    processes = requests[0][0].processes
    results = [[part.new_empty(part.shape) for part in parts] for _, parts in requests]
    divisions = tuple(division for division, _ in requests)
    if divisions not in rounds:
        rounds[divisions] = _deal(divisions)
    for jobs in rounds[divisions]:
        matrices = {job: like.new_empty(job.shape) for job in jobs if job.owner == processes.rank}

        def read_part(move: _Transfer) -> Tensor:
            return _flat(requests[move.job.request][1][move.piece.part])[move.piece.place]

        def write_matrix(move: _Transfer, block: Tensor, matrices: dict[_Job, Tensor] = matrices) -> None:
            matrices[move.job][move.piece.rows[:, None], move.piece.columns] = block

        def read_matrix(move: _Transfer, matrices: dict[_Job, Tensor] = matrices) -> Tensor:
            return matrices[move.job][move.piece.rows[:, None], move.piece.columns]

        def write_part(move: _Transfer, block: Tensor) -> None:
            _flat(results[move.job.request][move.piece.part])[move.piece.place] = block

        private = all(job.is_whole for job in jobs)
        _carry(_gathering(jobs, processes.rank), read_part, write_matrix, processes, like, local=private)
        _orthogonalize(matrices, config)
        private = all(list(job.holders) == [job.owner] for job in jobs)
        _carry(_scattering(jobs, processes.rank), read_matrix, write_part, processes, like, local=private)
    return results


def _gathering(jobs: Sequence[_Job], rank: int) -> Iterator[_Transfer]:
    """Pieces on their way to the owners, as far as they concern a process."""
    for job in jobs:
        for sender in job.holders if job.owner == rank else [rank]:
            if job.sends(sender):
                yield from (_Transfer(sender, job.owner, job, piece) for piece in job.holders[sender])


def _scattering(jobs: Sequence[_Job], rank: int) -> Iterator[_Transfer]:
    """The way back."""
    for job in jobs:
        for holder in job.holders if job.owner == rank else [rank]:
            pieces = job.holders.get(holder, [])
            yield from (_Transfer(job.owner, holder, job, piece) for piece in pieces)


def _carry(
    moves: Iterator[_Transfer],
    read: Callable[[_Transfer], Tensor],
    write: Callable[[_Transfer, Tensor], None],
    processes: Processes,
    like: Tensor,
    *,
    local: bool,
) -> None:
    """Carries pieces between processes.

    Args:
        moves: Those from and to this process.
        read: Where a piece comes from.
        write: Where it goes.
        processes: Who takes part.
        like: Dtype and device.
        local: Whether every piece stays where it is, in every process.
    """
    listed = list(moves)
    if local:
        for move in listed:
            write(move, read(move))
        return
    ranks = range(processes.size)
    outgoing: list[list[Tensor]] = [[] for _ in ranks]
    incoming: list[list[_Transfer]] = [[] for _ in ranks]
    for move in listed:
        if move.source == processes.rank:
            outgoing[move.target].append(read(move))
        if move.target == processes.rank:
            incoming[move.source].append(move)
    sizes = [[math.prod(move.piece.shape) for move in moves] for moves in incoming]
    received = exchange(outgoing, [sum(own) for own in sizes], processes, like)
    for flat, own, arrived in zip(received, sizes, incoming, strict=True):
        for block, move in zip(flat.split(own), arrived, strict=True) if arrived else ():
            write(move, block.view(move.piece.shape))


def _orthogonalize(matrices: dict[_Job, Tensor], config: RuleConfig) -> None:
    """In place; matrices of equal shape together."""
    shapes: dict[tuple[int, int], list[_Job]] = {}
    for job in matrices:
        shapes.setdefault(job.shape, []).append(job)
    for alike in shapes.values():
        done = orthogonalize.compute(torch.stack([matrices[job] for job in alike]), config)
        matrices.update(zip(alike, done, strict=True))


def _deal(divisions: tuple[Division, ...]) -> list[list[_Job]]:
    """The matrices of every process, the costly ones first; in one round each has `ROUND_SIZE` or one."""
    size = divisions[0].processes.size
    todo = [(request, matrix) for request, d in enumerate(divisions) for matrix in range(d.num_matrices)]
    load, number, room = [0.0] * size, [0] * size, [ROUND_SIZE] * size
    rounds: list[list[_Job]] = []
    for request, matrix in sorted(todo, key=lambda entry: -_cost(divisions[entry[0]])):
        division = divisions[request]
        owner = min(division.in_full[matrix] or range(size), key=load.__getitem__)
        load[owner] += _cost(division)
        elements = math.prod(division.layout.shape[-2:])
        if room[owner] < min(elements, ROUND_SIZE):
            number[owner], room[owner] = number[owner] + 1, ROUND_SIZE
        room[owner] -= elements
        rounds += [[] for _ in range(number[owner] + 1 - len(rounds))]
        rounds[number[owner]].append(_Job(request, matrix, division, owner))
    return rounds


def _flat(part: Tensor) -> Tensor:
    """`(matrices, rows, columns)`."""
    return part.reshape(-1, *part.shape[-2:])


def _cost(division: Division) -> int:
    """Multiplications of Newton–Schulz on one of its matrices, up to a factor."""
    *_, rows, columns = division.layout.shape
    return rows * columns * min(rows, columns)
