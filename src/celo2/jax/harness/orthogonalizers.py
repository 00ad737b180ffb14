"""Applies a user-defined orthogonaliser after any direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from celo2.constants import TINY
from celo2.jax.harness.matrices import MatrixTree, norms, stateless


def orthogonalize_by(
    function: Callable[[Array], Array], *, dimension_numbers: Any = None
) -> optax.GradientTransformation:
    """Replaces each matrix by the result of a function, keeping its root mean square.

    Args:
        function: Maps matrices `(..., reduction, output)` in at least float32 to matrices of the same shape
            and any scale. It is not called for arrays of rank < 2. Matrices of zeros stay zero.
        dimension_numbers: The matrix axes, as in `celo2.scale_by_celo2`.

    Raises:
        ValueError: The function returns another shape.

    Example:
        The polar factor by a singular value decomposition:

        >>> import jax.numpy as jnp
        >>> def polar(matrices):
        ...     u, _, vt = jnp.linalg.svd(matrices, full_matrices=False)
        ...     return u @ vt
        >>> tx = orthogonalize_by(polar)
        >>> step = {"kernel": jnp.array([[3.0, 0.0], [0.0, 1.0]])}
        >>> updates, _ = tx.update(step, tx.init(step))
        >>> bool(jnp.allclose(updates["kernel"], 5**0.5 * jnp.eye(2)))
        True
    """

    def replace(step: Array) -> Array:
        if step.ndim < 2:
            return step
        norm = norms(step)
        made = function(step)
        if made.shape != step.shape:
            raise ValueError(
                f"the orthogonaliser made matrices of shape {made.shape} of {step.shape}; it must keep it."
            )
        return jnp.where(norm > 0, made * (norm / (norms(made) + TINY)), 0)

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        return MatrixTree.of(updates, dimension_numbers).map(replace, updates)

    return stateless(update)
