"""Weight decay that applies only where it agrees with the step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.jax.state import check_params


def add_cautious_weight_decay(weight_decay: Any, mask: Any = None) -> optax.GradientTransformation:
    """Adds weight decay λ to un-negated steps u where the step does not pull the weight p away from zero.

        u ← u + λ p · [u p ≥ 0]

    It replaces `optax.add_decayed_weights`, before the learning rate.

    Args:
        weight_decay: The decay λ ≥ 0.
        mask: The parameters that decay, as in `optax.adamw`; None: all.

    Raises:
        ValueError: `update` got no parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = add_cautious_weight_decay(0.1)
        >>> step, params = {"kernel": jnp.array([1.0, -1.0])}, {"kernel": jnp.array([10.0, 10.0])}
        >>> updates, _ = tx.update(step, tx.init(params), params)
        >>> [float(x) for x in updates["kernel"]]
        [2.0, -1.0]

    References:
        Cautious Weight Decay, arXiv 2510.12402, equation 1.
    """

    def decay(step: Array, param: Array) -> Array:
        param = param.astype(step.dtype)
        return step + jnp.where(step * param >= 0, weight_decay * param, 0).astype(step.dtype)

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        check_params(params)
        return jax.tree.map(decay, updates, params)

    tx = optax.stateless(update)  # type: ignore[arg-type]
    return tx if mask is None else optax.masked(tx, mask)
