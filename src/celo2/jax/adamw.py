"""Adam's direction with moments of fixed precision, for parameters that the rule does not update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from celo2.jax.state import match_params, working_dtype


def scale_by_wide_adam(betas: Sequence[Any]) -> optax.GradientTransformation:
    """Turns gradients into Adam's steps, with moments at least as precise as float32.

    The state is `optax.ScaleByAdamState`, in float32 for narrower parameters and in the parameters' own dtype
    otherwise: the second moment of small gradients, and Adam's ε of 1e-8, are zero in float16. Steps have the
    gradient's dtype.

    Args:
        betas: The decays of the two moments, in [0, 1).

    Returns:
        A transform whose `update` needs the parameters.

    References:
        Adam: arXiv 1412.6980, algorithm 1.
    """
    adam = optax.scale_by_adam(*betas)

    def init(params: optax.Params) -> optax.OptState:
        return adam.init(_widen(params, params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        params = match_params(updates, params)
        steps, state = adam.update(_widen(updates, params), state)
        return jax.tree.map(_cast_like, steps, updates), state

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _widen(tree: Any, params: optax.Params) -> Any:
    """Casts to the working dtype; Python numbers among the leaves become arrays, as in Optax."""
    arrays = (
        jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), one)
        for one in (tree, params)
    )
    return jax.tree.map(lambda leaf, param: _cast(leaf, working_dtype(param)), *arrays)


def _cast(array: Any, dtype: np.dtype) -> Any:
    """Casts an array, or returns it if it has that dtype, since a cast would end its weak type."""
    return array if array.dtype == dtype else array.astype(dtype)


def _cast_like(step: Any, grad: Any) -> Any:
    return _cast(step, grad.dtype) if hasattr(grad, "dtype") else step
