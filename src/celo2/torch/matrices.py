"""The matrices of one parameter, of which this process may hold blocks; as `celo2.jax.harness.matrices`.

Operations on whole matrices are written once, as generators that yield the sums they need. If one process
holds a parameter in full, the sum over the shards is the summand itself (`sharding.runtime.run_alone`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.torch.batching import Leaf, working_dtype
from celo2.torch.dimensions import Layout
from celo2.torch.sharding.collectives import AllReduce, UpdateTask
from celo2.torch.sharding.dtensor import is_dtensor
from celo2.torch.sharding.spec import ShardingSpec


class Target(NamedTuple):
    """A parameter to update by the rule.

    Attributes:
        leaf: The rule's inputs, as local tensors.
        spec: The sharding spec; None if this process computes the step alone.
        state: The parameter's state, which may have `DTensor`s.
        param: The parameter, which may be a `DTensor`.
    """

    leaf: Leaf
    spec: ShardingSpec | None
    state: dict[str, Tensor]
    param: Tensor

    @property
    def layout(self) -> Layout:
        """The layout of the whole parameter."""
        return self.leaf.layout

    @property
    def dtype(self) -> torch.dtype:
        """The working dtype."""
        return working_dtype(self.leaf.param.dtype)

    @property
    def has_matrices(self) -> bool:
        """Whether the parameter has rank ≥ 2 and is not empty."""
        return self.layout.axes is not None and 0 not in self.layout.shape

    def enter(self, own: Tensor) -> list[Tensor]:
        """Returns this process's blocks `(..., rows, columns)` of a local tensor."""
        return [self.layout.enter(own)] if self.spec is None else self.spec.shard.to_blocks(own)

    def leave(self, blocks: Sequence[Tensor]) -> Tensor:
        """Inverts `enter`."""
        if self.spec is None:
            return self.layout.leave(blocks[0], self.leaf.param.shape)
        return self.spec.shard.from_blocks(blocks, like=self.leaf.param)

    def scale(self, blocks: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
        """Multiplies blocks by factors with the layout's shape, where some axes have length 1."""
        if self.spec is None:
            return [blocks[0] * factors]
        regions = self.spec.shard.regions
        return [own * factors[r.index_in(factors.shape)] for own, r in zip(blocks, regions, strict=True)]

    def sum_squares(self, *wanted: tuple[Sequence[Tensor], tuple[int, ...]]) -> UpdateTask:
        """Sums squares over axes of whole matrices.

        Args:
            *wanted: Blocks, and the axes to sum over, among the last two, counted from the end.

        Yields:
            One request for all sums.

        Returns:
            The sums of each, in the layout's shape with length 1 along these axes.
        """
        return (yield AllReduce([self._sum_own(*pair) for pair in wanted]))

    def _sum_own(self, blocks: Sequence[Tensor], axes: tuple[int, ...]) -> Tensor:
        if self.spec is None:
            return blocks[0].square().sum(axes, keepdim=True)
        total = torch.zeros(reduced(self.layout, axes), dtype=self.dtype, device=self.leaf.param.device)
        for region, own in zip(self.spec.shard.regions, blocks, strict=True):
            total[region.index_in(total.shape)] += own.square().sum(axes, keepdim=True)
        return total

    def gather(self, own: Tensor) -> Tensor:
        """Returns the whole tensor, in the parameter's shape, from local parts placed as the parameter."""
        if self.spec is None or self.spec.num_shards == 1 or not is_dtensor(self.param):
            return own
        from torch.distributed.tensor import DTensor

        mesh, placements = self.param.device_mesh, self.param.placements  # type: ignore[attr-defined]
        shape, stride = self.param.shape, self.param.stride()
        placed = DTensor.from_local(
            own.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride
        )
        return placed.full_tensor()

    def share(self, whole: Tensor) -> Tensor:
        """Returns this process's part of a whole tensor, in the parameter's placement; inverts `gather`."""
        if self.spec is None:
            return whole
        for axis, held in enumerate(self.spec.shard.elements):
            if len(held) < whole.shape[axis]:
                whole = whole.index_select(axis, held.to(whole.device))
        return whole


def output_axis(layout: Layout) -> int:
    """Returns the axis of a matrix along which its output neurons lie, -2 or -1; -2 if as stored."""
    return -2 if layout.view is None or layout.view.output_first else -1


def reduced(layout: Layout, axes: Sequence[int]) -> tuple[int, ...]:
    """Returns the layout's shape with length 1 along some axes, counted from the end."""
    rank = len(layout.shape)
    return tuple(1 if place - rank in axes else size for place, size in enumerate(layout.shape))
