"""Averages the parameters over steps, for evaluation in place of the last ones.

    a ← a + max(1 - β, 1 / n) (p - a)

for the n-th set of parameters since the start: the plain mean at first, then the exponential average. With
β = 1 it is the mean of the tail.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.jax.state import check_params, working_dtype


class AverageParamsState(NamedTuple):
    """State of `average_params`.

    Attributes:
        count: The number of updates, int32.
        average: The average, a tree like the parameters in at least float32.
    """

    count: Array  # type: ignore[assignment]  # Optax's own name, tuple.count is not meant
    average: optax.Params


def average_params(decay: float = 0.999, *, start: int = 0) -> optax.GradientTransformationExtraArgs:
    """Keeps an average of the parameters in the optimizer's state, and passes updates through.

    Put it at the end of the outermost `optax.chain`, so that it sees the whole update. Sums are not
    rounded to the parameters' dtype before they are averaged. Read the average with `averaged_params`. The
    state has 4 bytes per float32 parameter.

    Args:
        decay: The decay β of the average, in [0, 1]; 1 is the mean of all parameters since `start`.
        start: The number of updates before averaging starts, ≥ 0.

    Raises:
        ValueError: An argument is out of its range, or `update` got no parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = optax.chain(optax.sgd(1.0), average_params(1.0))
        >>> params = {"kernel": jnp.zeros(1)}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"kernel": -jnp.ones(1)}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> float(params["kernel"][0]), float(averaged_params(state)["kernel"][0])
        (3.0, 2.0)

    References:
        Polyak and Juditsky, 1992, https://doi.org/10.1137/0330046. Stochastic weight averaging, arXiv
        1803.05407.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}.")
    if start < 0:
        raise ValueError(f"start must not be negative, got {start}.")

    def init(params: optax.Params) -> AverageParamsState:
        average = jax.tree.map(lambda param: jnp.array(param, working_dtype(param)), params)
        return AverageParamsState(jnp.zeros((), jnp.int32), average)

    def update(
        updates: optax.Updates, state: AverageParamsState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, AverageParamsState]:
        del extra
        check_params(params)
        count = jnp.asarray(optax.safe_increment(state.count))
        number = jnp.maximum(count - start, 1)

        def average(old: Array, param: Array, step: Array) -> Array:
            share = jnp.maximum(1.0 - decay, 1.0 / number.astype(old.dtype))
            moved = param.astype(old.dtype) + step.astype(old.dtype)
            return old + share * (moved - old)

        return updates, AverageParamsState(count, jax.tree.map(average, state.average, params, updates))

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def averaged_params(state: optax.OptState) -> Any:
    """Returns the average in the state of an optimizer that contains `average_params`.

    Raises:
        KeyError: The state contains none, or several.
    """
    is_average = lambda node: isinstance(node, AverageParamsState)  # noqa: E731
    found = [node for node in jax.tree.leaves(state, is_leaf=is_average) if is_average(node)]
    if len(found) != 1:
        raise KeyError(f"the state has {len(found)} averages of parameters, expected one of average_params.")
    return found[0].average
