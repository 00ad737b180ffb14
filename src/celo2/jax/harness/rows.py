"""Normalises a matrix's step per output neuron, after Newton–Schulz.

    v ← β v + (1 - β) mean of O ⊙ O over a neuron's inputs
    Ô = O / (√v + ε)
    step = Ô · ‖O‖ / ‖Ô‖

Source: NorMuon, arXiv 2510.05491, algorithm 1, β = 0.95; ε = 1e-10 is from the authors' code. The paper
gives the step a new norm; here the step keeps its norm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from celo2.constants import ROW_EPS, TINY
from celo2.jax.harness.matrices import MatrixTree, init_on_any_mesh, norms, on_any_mesh


class NormalizeRowsState(NamedTuple):
    """State of `normalize_rows`.

    Attributes:
        mean_square: The running mean square of each output neuron's steps, a tree of arrays
            `(..., 1, output)`; an array of rank < 2 has an unused scalar.
    """

    mean_square: optax.Params


def normalize_rows(decay: float = 0.95, *, dimension_numbers: Any = None) -> optax.GradientTransformation:
    """Divides the steps of each output neuron by the root of their running mean square.

    The norm of each matrix's step is preserved. Steps that are zero everywhere, with their mean squares, and
    arrays of rank < 2 are left unchanged. Put it after an orthogonaliser, such as `scale_by_celo2`.

    Args:
        decay: The decay β of the running mean, in [0, 1).
        dimension_numbers: The matrix axes, as in `celo2.scale_by_celo2`.

    Raises:
        ValueError: The decay is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = normalize_rows()
        >>> step = {"kernel": jnp.array([[1.0, 4.0], [1.0, 4.0]])}
        >>> updates, _ = tx.update(step, tx.init(step))
        >>> bool(jnp.allclose(updates["kernel"], jnp.full((2, 2), 8.5**0.5)))
        True
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}.")

    def init(params: optax.Params) -> NormalizeRowsState:
        tree = MatrixTree.of(params, dimension_numbers)
        means = [_mean_square(jnp.zeros_like(matrices)) for matrices in tree.enter(params)]
        return NormalizeRowsState(tree.treedef.unflatten(means))

    def update(
        updates: optax.Updates, state: NormalizeRowsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NormalizeRowsState]:
        del params
        tree = MatrixTree.of(updates, dimension_numbers)
        old = tree.treedef.flatten_up_to(state.mean_square)
        pairs = [_update(*pair, decay) for pair in zip(tree.enter(updates), old, strict=True)]
        steps, means = zip(*pairs, strict=True) if pairs else ((), ())
        return tree.leave(steps), NormalizeRowsState(tree.treedef.unflatten(means))

    return optax.GradientTransformation(init_on_any_mesh(init), on_any_mesh(update))  # type: ignore[arg-type]


def _update(step: Array, mean: Array, decay: float) -> tuple[Array, Array]:
    if step.ndim < 2:
        return step, mean
    norm = norms(step)
    mean = jnp.where(norm > 0, decay * mean + (1 - decay) * _mean_square(step), mean)
    normalized = step / (jnp.sqrt(mean) + ROW_EPS)
    return normalized * (norm / (norms(normalized) + TINY)), mean


def _mean_square(matrices: Array) -> Array:
    if matrices.ndim < 2:
        return jnp.zeros((), matrices.dtype)
    return jnp.mean(jnp.square(matrices), axis=-2, keepdims=True)
