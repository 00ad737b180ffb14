"""Controls the norms of steps and weights: how far a matrix moves relative to its size."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from celo2.constants import TINY
from celo2.jax.harness.matrices import MatrixTree, init_on_any_mesh, norms, on_any_mesh, stateless
from celo2.jax.state import check_params


def floor_update_ratio(min_ratio: float, *, dimension_numbers: Any = None) -> optax.GradientTransformation:
    """Lengthens a matrix's step u whose norm is below `min_ratio` times that of its weights w.

        u ← u · max(1, min_ratio · ‖w‖ / ‖u‖)

    Weights that have grown keep moving by a share of their size; with steps of constant length they would
    freeze. Put it before the learning rate, which multiplies both. Steps of zero stay zero; arrays of
    rank < 2 count as one matrix.

    Args:
        min_ratio: The minimum ratio of the norms, ≥ 0. With steps of root mean square 1, weights whose root
            mean square is above `1 / min_ratio` get longer steps.
        dimension_numbers: The matrix axes, as in `celo2.scale_by_celo2`.

    Raises:
        ValueError: The ratio is out of its range, or `update` got no parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = floor_update_ratio(0.5)
        >>> step, params = {"kernel": jnp.ones((2, 2))}, {"kernel": jnp.full((2, 2), 6.0)}
        >>> updates, _ = tx.update(step, tx.init(params), params)
        >>> float(updates["kernel"][0, 0])
        3.0

    References:
        The "u/w floor" of Skylight (modded-nanogpt, track 3, 2026), there with 0.35 for steps of norm √n.
    """
    if not 0 <= min_ratio < math.inf:
        raise ValueError(f"min_ratio must be finite and not negative, got {min_ratio}.")

    def lengthen(step: Array, param: Array) -> Array:
        norm = norms(step)  # zero where the squares of a tiny step are
        ratio = jnp.where(norm > 0, min_ratio * norms(param) / norm, 0.0)
        return step * jnp.maximum(1.0, ratio)

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        check_params(params)
        return MatrixTree.of(updates, dimension_numbers).map(lengthen, updates, params)

    return stateless(update)


class PreserveNormsState(NamedTuple):
    """State of `preserve_norms`.

    Attributes:
        radius: The norm of each matrix at `init`, a tree of arrays `(..., 1, 1)`.
    """

    radius: optax.Params


def preserve_norms(*, dimension_numbers: Any = None) -> optax.GradientTransformation:
    """Rescales each matrix w to its initial norm R after the update u.

        w + u ← R · (w + u) / ‖w + u‖

    Put it at the very end of a chain, after the learning rate and its sign. Matrices whose update is zero do
    not change. Matrices that are zero at `init` are not constrained, nor are arrays of rank < 2.

    Args:
        dimension_numbers: The matrix axes, as in `celo2.scale_by_celo2`.

    Raises:
        ValueError: `update` got no parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = preserve_norms()
        >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
        >>> updates, _ = tx.update({"kernel": jnp.array([[0.0, -4.0]])}, tx.init(params), params)
        >>> [round(float(x), 6) for x in (params["kernel"] + updates["kernel"])[0]]
        [5.0, 0.0]

    References:
        Hyperball, arXiv 2606.16899. It also makes steps a share of R: `floor_update_ratio` with a large
        ratio.
    """

    def init(params: optax.Params) -> PreserveNormsState:
        tree = MatrixTree.of(params, dimension_numbers)
        return PreserveNormsState(tree.treedef.unflatten([norms(matrix) for matrix in tree.enter(params)]))

    def project(step: Array, param: Array, radius: Array) -> Array:
        if step.ndim < 2:
            return step
        moved = param + step
        moves = (radius > 0) & (norms(step) > 0)
        return jnp.where(moves, moved * (radius / (norms(moved) + TINY)) - param, step)

    def update(
        updates: optax.Updates, state: PreserveNormsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, PreserveNormsState]:
        check_params(params)
        tree = MatrixTree.of(updates, dimension_numbers)
        radii = tree.treedef.flatten_up_to(state.radius)
        parts = zip(tree.enter(updates), tree.enter(params), radii, strict=True)
        return tree.leave([project(*part) for part in parts]), state

    return optax.GradientTransformation(init_on_any_mesh(init), on_any_mesh(update))  # type: ignore[arg-type]
