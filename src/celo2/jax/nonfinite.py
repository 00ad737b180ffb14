"""Skips and counts updates of arrays whose gradients are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

Keep = Callable[[optax.Updates, optax.OptState, optax.OptState], optax.OptState]


class SkipNonfiniteState(NamedTuple):
    """State of an optimizer with `skip_nonfinite_gradients`.

    Attributes:
        num_nonfinite: The number of times that an array was skipped, int32.
        inner_state: The state of the inner optimizer.
    """

    num_nonfinite: Array
    inner_state: optax.OptState


def skip_nonfinite(
    inner: optax.GradientTransformationExtraArgs, keep: Keep | None = None
) -> optax.GradientTransformationExtraArgs:
    """Skips arrays whose gradient contains an infinity or NaN: their update is 0 and their state is kept.

    Args:
        inner: An optimizer that does not change an array's state if its gradient is zero.
        keep: Restores state that the optimizer does change: given a tree of which gradients are finite, the
            new state and the old one, it returns the new state with the old values of the skipped arrays.
    """

    def init(params: optax.Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates,
        state: SkipNonfiniteState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, SkipNonfiniteState]:
        finite = jax.tree.map(lambda grad: jnp.all(jnp.isfinite(grad)), updates)
        zeros = jax.tree.map(jnp.zeros_like, updates)
        steps, new = inner.update(choose_finite(finite, updates, zeros), state.inner_state, params, **extra)
        left_out = sum((~whole).astype(jnp.int32) for whole in jax.tree.leaves(finite))
        kept = new if keep is None else keep(finite, new, state.inner_state)
        return choose_finite(finite, steps, zeros), SkipNonfiniteState(state.num_nonfinite + left_out, kept)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def choose_finite(finite: Any, new: Any, old: Any) -> Any:
    """Selects new arrays where the gradient is finite and old ones elsewhere; keeps masked nodes."""

    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def choose(new: Any, old: Any, whole: Any) -> Any:
        return new if masked(new) else jnp.where(whole, new, old.astype(new.dtype))

    return jax.tree.map(choose, new, old, finite, is_leaf=masked)
