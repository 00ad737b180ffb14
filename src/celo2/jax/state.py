"""The state of `scale_by_celo2`: trees shaped like the parameters, and their conversion to leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from optax._src.base import (
    NO_PARAMS_MSG,  # Optax has no public name for its own message
)

from celo2.jax import accumulators as accumulators_lib
from celo2.jax import quantization
from celo2.jax.accumulators import Accumulators, Decays
from celo2.jax.dimensions import Layout, make_layout


class ScaleByCelo2State(NamedTuple):
    """State of `scale_by_celo2`: trees shaped like the parameters, one per decay.

    Attributes:
        count: The number of updates so far, int32.
        momentum: Trees of momenta, of the parameters' shapes, float32 or `state_dtype`.
        rms: Trees of second moments, of the parameters' shapes, float32 or `state_dtype`.
        row: Trees of row accumulators (`accumulators.Accumulators`).
        col: Trees of column accumulators.
    """

    count: Array  # type: ignore[assignment]  # Optax's own name, tuple.count is not meant
    momentum: tuple[optax.Params, ...]
    rms: tuple[optax.Params, ...]
    row: tuple[optax.Params, ...]
    col: tuple[optax.Params, ...]


STATE_DTYPES = {"bfloat16": jnp.bfloat16, "int8": jnp.int8}


def check_state_dtype(dtype: Any) -> jnp.dtype | None:
    """Returns the dtype of the momenta: None (the computation's own), bfloat16 or int8."""
    for name, known in STATE_DTYPES.items():
        if dtype in (name, known, np.dtype(known)):
            return np.dtype(known)
    if dtype is not None:
        raise ValueError(f'state_dtype must be None (float32), "bfloat16" or "int8", got {dtype!r}.')
    return None


def init_state(
    params: optax.Params, layouts: Any, rule: Decays, dtype: jnp.dtype | None = None
) -> ScaleByCelo2State:
    """Makes zero-initialised accumulators of all parameters; `dtype` is a result of `check_state_dtype`."""

    def trees(make: Callable[[Array, Layout], Array], decays: Sequence[float]) -> tuple[Any, ...]:
        return tuple(jax.tree.map(make, params, layouts) for _ in decays)

    narrow = dtype == np.int8

    def init_momentum(param: Array, layout: Layout) -> Any:
        return quantization.zeros_like(param) if narrow else init_rms(param, layout)

    def init_rms(param: Array, layout: Layout) -> Array:  # noqa: ARG001
        stored = np.dtype(jnp.bfloat16) if narrow else dtype
        return jnp.zeros_like(param, dtype=stored or working_dtype(param))

    return ScaleByCelo2State(
        jnp.zeros((), jnp.int32),
        trees(init_momentum, rule.initial_momentum_decays),
        trees(init_rms, rule.initial_rms_decays),
        trees(_init_row, rule.initial_adafactor_decays),
        trees(_init_col, rule.initial_adafactor_decays),
    )


def check_params(params: Any) -> None:
    """Raises Optax's own error if `update` got no parameters."""
    if params is None:
        raise ValueError(NO_PARAMS_MSG)


def match_params(updates: optax.Updates, params: optax.Params | None) -> optax.Params:
    """Returns the parameters that have an update, dropping those whose update is None.

    A whole model may therefore be passed, such as an Equinox module with its functions, as in Optax.

    Raises:
        ValueError: There are no parameters.
    """
    check_params(params)
    found, treedef = jax.tree.flatten(updates, is_leaf=lambda node: node is None)
    pairs = zip(found, treedef.flatten_up_to(params), strict=True)
    return jax.tree.unflatten(jax.tree.structure(updates), [p for update, p in pairs if update is not None])


def state_to_leaves(state: ScaleByCelo2State, treedef: Any) -> list[Accumulators]:
    """Converts one tree per decay to one `Accumulators` per leaf."""

    def leaves(trees: tuple[Any, ...]) -> list[tuple[Array, ...]]:
        found = list(zip(*map(treedef.flatten_up_to, trees), strict=True))
        return found if trees else [()] * treedef.num_leaves

    return [Accumulators(*leaf) for leaf in zip(*map(leaves, state[1:]), strict=True)]


def leaves_to_state(
    leaves: Sequence[Accumulators], count: Array, treedef: Any, like: ScaleByCelo2State
) -> ScaleByCelo2State:
    """Inverts `state_to_leaves`; `like` gives the number of decays."""
    families = [
        tuple(treedef.unflatten([leaf[family][index] for leaf in leaves]) for index in range(len(trees)))
        for family, trees in enumerate(like[1:])
    ]
    return ScaleByCelo2State(count, *families)


def make_layouts(params: optax.Params, dimension_numbers: Any) -> Any:
    """Makes a tree like the parameters with a `Layout` for each array."""
    if dimension_numbers is None:
        return jax.tree.map(_layout_of, params)
    numbers = dimension_numbers(params) if callable(dimension_numbers) else dimension_numbers

    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(
        lambda param, leaf: param if masked(param) else _layout_of(param, leaf),
        params,
        numbers,
        is_leaf=masked,
    )


def _layout_of(param: Array, numbers: Any = None) -> Layout:
    dtype = getattr(param, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        found = type(param).__name__ if dtype is None else f"one of dtype {dtype} and shape {param.shape}"
        raise TypeError(
            f"the rule updates real floating-point arrays, got {found}; keep it away with optax.partition or "
            "optax.masked, or in an Equinox model with eqx.filter(model, eqx.is_inexact_array)."
        )
    return make_layout(param.shape, numbers)


def working_dtype(param: Any) -> np.dtype:
    """Returns the dtype that the rule computes in: float64 for float64 arrays, float32 for narrower ones."""
    return np.promote_types(param.dtype, np.float32)  # jnp.promote_types obeys strict promotion


def _init_row(param: Array, layout: Layout) -> Array:
    return accumulators_lib.init_row(layout.shape, layout.axes, working_dtype(param))


def _init_col(param: Array, layout: Layout) -> Array:
    return accumulators_lib.init_col(layout.shape, layout.axes, working_dtype(param))
