"""Gradients that are not finite, and models with leaves that are no parameters, in the Optax transforms."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import celo2
from helpers.contract_table import (
    CELO2,
    CELO2_BASE,
    assert_trees_close,
    make_grads,
    make_params,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

FACTORIES = {"celo2": (celo2.celo2, CELO2), "celo2_base": (celo2.celo2_base, CELO2_BASE)}
every_optimizer = pytest.mark.parametrize(("factory", "weights"), FACTORIES.values(), ids=FACTORIES)
BAD = {"rule's": ("block", "up", "kernel"), "adamw's": ("embedding",)}


def make(factory: Any, weights: Any, **options: Any) -> optax.GradientTransformationExtraArgs:
    options = {"skip_nonfinite_gradients": True, "weight_decay": 0.1, **options}
    return factory(0.01, weights=weights, **options)


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def spoil(grads: Any, path: tuple[str, ...], value: float) -> Any:
    grads = jax.tree.map(lambda grad: grad, grads)
    holder = at(grads, path[:-1])
    holder[path[-1]] = holder[path[-1]].at[0, 1].set(value)
    return grads


def states_of(state: Any, path: tuple[str, ...]) -> list[Any]:
    """All arrays in a state that belong to a parameter."""
    wanted = "/".join(path)
    named = jax.tree_util.tree_leaves_with_path(state)
    return [
        leaf for key, leaf in named if jax.tree_util.keystr(key, simple=True, separator="/").endswith(wanted)
    ]


@every_optimizer
@pytest.mark.parametrize("path", BAD.values(), ids=BAD)
@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_an_array_is_left_out_and_counted(
    factory: Any, weights: Any, path: tuple[str, ...], value: float
) -> None:
    tx, params = make(factory, weights), make_params()
    update = jax.jit(tx.update)
    _, before = update(make_grads(params, 3), tx.init(params), params)
    grads = make_grads(params, 4)
    expected, expected_state = update(grads, before, params)
    updates, after = update(spoil(grads, path, value), before, params)
    assert not np.any(at(updates, path))
    for old, new in zip(states_of(before, path), states_of(after, path), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(states_of(after, path)) >= 2
    counts = [int(optax.tree.get(state, "num_nonfinite")) for state in (before, expected_state, after)]
    assert counts == [0, 0, 1]
    for other in {*BAD.values(), ("block", "up", "bias")} - {path}:
        np.testing.assert_allclose(at(updates, other), at(expected, other), rtol=1e-6)


@every_optimizer
def test_what_is_finite_trains_as_without_the_option(factory: Any, weights: Any) -> None:
    params, states = make_params(), []
    for skip in (True, False):
        tx = make(factory, weights, skip_nonfinite_gradients=skip)
        update = jax.jit(tx.update)
        updates, state = update(make_grads(params), tx.init(params), params)
        states.append((updates, getattr(state, "inner_state", state)))
    assert_trees_close(*states)


@every_optimizer
def test_without_the_option_nan_stays(factory: Any, weights: Any) -> None:
    tx, params = factory(0.01, weights=weights), make_params()
    update = jax.jit(tx.update)
    path = BAD["rule's"]
    _, state = update(spoil(make_grads(params), path, np.nan), tx.init(params), params)
    updates, _ = update(make_grads(params), state, params)
    assert np.isnan(at(updates, path)).all()
    assert np.isfinite(at(updates, BAD["adamw's"])).all()


@every_optimizer
def test_the_option_needs_zeros_to_be_skipped(factory: Any, weights: Any) -> None:
    with pytest.raises(ValueError, match="needs skip_zero_gradients=True"):
        make(factory, weights, skip_zero_gradients=False)


@every_optimizer
def test_apply_if_finite_leaves_out_whole_steps(factory: Any, weights: Any) -> None:
    """The remedy that the documentation names."""
    params = make_params()
    tx = optax.apply_if_finite(factory(0.01, weights=weights), max_consecutive_errors=3)
    bad = spoil(make_grads(params), BAD["rule's"], np.nan)
    updates, state = jax.jit(tx.update)(bad, tx.init(params), params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    updates, _ = jax.jit(tx.update)(make_grads(params), state, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@every_optimizer
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.filterwarnings("ignore::celo2.routing.routes.RoutingWarning")
def test_an_equinox_model_may_be_given_as_it_is(factory: Any, weights: Any, skip: bool) -> None:
    """With the functions that it holds, as Optax takes it."""
    model: Any = eqx.nn.MLP(2, 2, 4, 2, key=jax.random.key(0))
    grads = eqx.filter_grad(lambda net: jax.vmap(net)(jnp.ones((3, 2))).mean())(model)
    arrays = eqx.filter(model, eqx.is_inexact_array)
    tx = make(factory, weights, skip_nonfinite_gradients=skip)
    whole, _ = tx.update(grads, tx.init(arrays), model)
    filtered, _ = tx.update(grads, tx.init(arrays), arrays)
    assert_trees_close(whole, filtered)
    moved = eqx.apply_updates(model, whole)
    assert all(
        np.any(a != b)
        for a, b in zip(*map(jax.tree.leaves, (eqx.filter(moved, eqx.is_inexact_array), arrays)), strict=True)
    )
    with pytest.raises(TypeError, match=r"eqx\.filter"):
        tx.init(model)
