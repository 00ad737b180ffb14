"""The rule in the eigenbasis of Shampoo's Kronecker factors, as in `celo2.jax.harness.eigenbasis`.

    G' = Q_Lᵀ G Q_R,    W' = Q_Lᵀ W Q_R
    step = Q_L rule(G', W') Q_Rᵀ
    L ← β L + (1 - β) G Gᵀ,    R ← β R + (1 - β) Gᵀ G
    every so many steps: Q_L ← QR(L Q_L),    Q_R ← QR(R Q_R)

Source: SOAP, arXiv 2409.11321, algorithms 3 and 4. Momenta follow the bases exactly; second moments follow
the order of their columns, which are sorted by decreasing eigenvalue. The first gradient only initialises
the bases, by an eigendecomposition, and its step is zero. G is the clipped gradient, so that its squares are
finite.

`left` belongs to the rows of the layout's matrices, `right` to the columns: for a linear layer, stored as
`(out, in)`, these are JAX's right and left. Sharded parameters are gathered, and every process has all
factors and bases; the rule between `enter` and `leave` sees shards as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.constants import BASIS_DECAY, GRAD_CLIP, MAX_BASIS_SIDE
from celo2.routing.dimension_numbers import DimensionNumbers
from celo2.torch.batching import Leaf
from celo2.torch.dimensions import Layout
from celo2.torch.matrices import Target
from celo2.torch.sharding.dtensor import local

SIDES = {"left": -2, "right": -1}


class Basis(NamedTuple):
    """The bases of a stack of matrices.

    Attributes:
        left: Orthogonal matrices `(batch, rows, rows)`; None for a long side, which keeps its own basis.
        right: The same for the columns.
    """

    left: Tensor | None
    right: Tensor | None

    def rotate(self, matrices: Tensor) -> Tensor:
        """Returns `Q_Lᵀ · matrices · Q_R`."""
        matrices = matrices if self.left is None else self.left.mT @ matrices
        return matrices if self.right is None else matrices @ self.right

    def rotate_back(self, matrices: Tensor) -> Tensor:
        """Inverts `rotate`."""
        matrices = matrices if self.left is None else self.left @ matrices
        return matrices if self.right is None else matrices @ self.right.mT


def matrix_numbers(shape: tuple[int, ...], numbers: DimensionNumbers | None) -> DimensionNumbers | None:
    """Returns dimension numbers for the rule in a basis, which sees a parameter of rank ≥ 2 as matrices.

    Without its own numbers, these are the last two axes, with the output before the reduction.
    """
    if numbers is not None or len(shape) < 2:
        return numbers
    return DimensionNumbers(len(shape) - 1, len(shape) - 2)


def state_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the factors and bases of a layout's matrices, by name."""
    if layout.axes is None or 0 in layout.shape:
        return {}
    sizes = {side: layout.shape[axis] for side, axis in SIDES.items()}
    return {
        f"{side}_{kind}": (*layout.shape[:-2], size, size)
        for kind in ("factor", "basis")
        for side, size in sizes.items()
        if size <= MAX_BASIS_SIDE
    }


def enter(target: Target) -> Leaf | None:
    """Adds the gradient to the factors, and returns the leaf with gradient and parameter in the basis.

    For the first gradient it returns None, since there is no basis yet; the leaf's count excludes that step.
    """
    leaf = target.leaf
    count = _previous_updates(target)
    entered = leaf._replace(count=leaf.count - 1)
    if not target.has_matrices:
        return entered if count else None
    grad = _whole_matrices(target, leaf.grad).clamp(-GRAD_CLIP, GRAD_CLIP)
    factors = _accumulate(target, grad)
    if not count:
        for side, factor in factors.items():
            local(target.state[f"{side}_basis"]).copy_(torch.linalg.eigh(factor).eigenvectors.flip(-1))
        return None
    basis = _basis(target)
    param = _whole_matrices(target, leaf.param)
    return entered._replace(
        grad=_own_part(target, basis.rotate(grad)), param=_own_part(target, basis.rotate(param))
    )


def leave(target: Target, step: Tensor | None, every: int) -> Tensor:
    """Returns the step outside the basis, and takes a power iteration if one is due.

    Args:
        target: The argument of `enter`.
        step: The local step in the basis; None: the first, which is zero.
        every: The number of steps between power iterations.
    """
    if step is None:
        return torch.zeros_like(target.leaf.param, dtype=target.dtype)
    if not target.has_matrices:
        return step
    step = _own_part(target, _basis(target).rotate_back(_whole_matrices(target, step)))
    if _previous_updates(target) % every == 0:
        _refresh(target)
    return step


def _previous_updates(target: Target) -> int:
    return int(target.state["step"]) - 1


def _whole_matrices(target: Target, own: Tensor) -> Tensor:
    return target.layout.enter(target.gather(own)).to(target.dtype)


def _own_part(target: Target, matrices: Tensor) -> Tensor:
    return target.share(target.layout.leave(matrices, target.param.shape))


def _basis(target: Target) -> Basis:
    names = (f"{side}_basis" for side in SIDES)
    return Basis(*(local(target.state[name]) if name in target.state else None for name in names))


def _accumulate(target: Target, grad: Tensor) -> dict[str, Tensor]:
    """Updates the factors in place, except for matrices without a gradient; returns them by side."""
    busy = (grad != 0).any(-1, keepdim=True).any(-2, keepdim=True)
    factors = {
        side: local(target.state[f"{side}_factor"]) for side in SIDES if f"{side}_factor" in target.state
    }
    for side, factor in factors.items():
        product = grad @ grad.mT if side == "left" else grad.mT @ grad
        factor.copy_(torch.where(busy, BASIS_DECAY * factor + (1 - BASIS_DECAY) * product, factor))
    return factors


def _refresh(target: Target) -> None:
    """Takes a power iteration for the bases and transforms the rule's accumulators to them."""
    old, accumulators = _basis(target), target.leaf.accumulators
    updated: dict[str, Tensor | None] = dict.fromkeys(SIDES)
    orders: dict[str, Tensor] = {}
    for side, basis in zip(SIDES, old, strict=True):
        if basis is not None:
            updated[side], orders[side] = _power_iteration(local(target.state[f"{side}_factor"]), basis)
    new = Basis(**updated)

    def change(own: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        own.copy_(_own_part(target, function(_whole_matrices(target, own))))

    for momentum in accumulators.momentum:
        change(momentum, lambda matrices: new.rotate(old.rotate_back(matrices)))
    for rms in accumulators.rms:
        change(rms, lambda matrices: _reorder(matrices, orders))
    for vector in accumulators.row + accumulators.col:
        vector.copy_(_reorder(vector, orders))
    for basis, other in zip(old, new, strict=True):
        if basis is not None and other is not None:
            basis.copy_(other)


def _power_iteration(factor: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the new basis and the old index of each of its columns, `(batch, size)`."""
    product = factor @ basis
    order = torch.argsort((basis * product).sum(-2), dim=-1, descending=True, stable=True)
    return torch.linalg.qr(product.take_along_dim(order[..., None, :], -1)).Q, order


def _reorder(matrices: Tensor, orders: dict[str, Tensor]) -> Tensor:
    """Reorders the rows and columns of `(batch, rows, columns)`; either may have length 1 instead."""
    for side, order in orders.items():
        axis = SIDES[side]
        if matrices.shape[axis] == order.shape[-1]:
            index = order[..., :, None] if side == "left" else order[..., None, :]
            matrices = matrices.take_along_dim(index, axis)
    return matrices
