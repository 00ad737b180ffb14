"""What Optax and its users expect of an optimizer, of every optimizer of the package.

Most tests run op by op, which shares its compilations; those about compiling, scanning and vmapping jit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax._src.base import NO_PARAMS_MSG

import celo2
from helpers.contract_table import (
    CELO2,
    ROWS,
    Row,
    assert_trees_close,
    make_grads,
    make_params,
    signature,
)

every_optimizer = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
Update = Callable[..., tuple[Any, Any]]


pytestmark = pytest.mark.usefixtures("standard_promotion")


def jitted_update(row: Row, tx: optax.GradientTransformationExtraArgs) -> Update:
    return jax.jit(lambda grads, state, params: tx.update(grads, state, params, **row.extra))


def eager_update(row: Row, tx: optax.GradientTransformationExtraArgs) -> Update:
    return lambda grads, state, params: tx.update(grads, state, params, **row.extra)


def one_step(row: Row, tx: optax.GradientTransformationExtraArgs, params: Any) -> tuple[Any, Any]:
    return tx.update(make_grads(params), tx.init(params), params, **row.extra)


@every_optimizer
def test_updates_have_the_gradients_structure_and_change_params(row: Row) -> None:
    tx, params = row.make(), make_params()
    updates, state = one_step(row, tx, params)
    assert signature(updates) == signature(params)
    for _ in range(row.silent_steps):
        updates, state = tx.update(make_grads(params, 3), state, params, **row.extra)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(updates))


@every_optimizer
def test_accepts_unknown_extra_arguments(row: Row) -> None:
    tx, params = row.make(), make_params()
    grads, state = make_grads(params), tx.init(params)
    plain, _ = one_step(row, tx, params)
    extra, _ = tx.update(grads, state, params, **row.extra, unknown_argument=1)
    assert_trees_close(extra, plain)


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_dtypes_are_fixed_and_the_second_call_compiles_nothing(row: Row, dtype: Any) -> None:
    tx, params = row.make(), make_params(dtype)
    grads, state, traces = make_grads(params), tx.init(params), []

    @jax.jit
    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        traces.append(1)
        return tx.update(grads, state, params, **row.extra)

    expected = signature(params), signature(state)
    for _ in range(3):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert (signature(updates), signature(state)) == (expected[0], expected[1])
        assert signature(params) == expected[0]
    assert len(traces) == 1


def test_direction_has_the_gradients_dtype_under_strict_promotion() -> None:
    params = make_params(jnp.float32)
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), make_grads(params))
    tx = celo2.scale_by_celo2(CELO2)
    with jax.numpy_dtype_promotion("strict"):
        updates, state = jax.eval_shape(tx.update, grads, tx.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.momentum)} == {jnp.dtype(jnp.float32)}


@every_optimizer
def test_scan_with_donated_buffers_equals_a_loop(row: Row) -> None:
    tx, params = row.make(), make_params()
    update = jitted_update(row, tx)
    all_grads = [make_grads(params, seed) for seed in range(3)]

    def body(carry: Any, grads: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(grads, state, params, **row.extra)
        return (optax.apply_updates(params, updates), state), None

    looped, state = params, tx.init(params)
    for grads in all_grads:
        updates, state = update(grads, state, looped)
        looped = optax.apply_updates(looped, updates)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *all_grads)
    train = jax.jit(lambda carry: jax.lax.scan(body, carry, stacked)[0], donate_argnums=0)
    carry = jax.tree.map(jnp.copy, (params, tx.init(params)))
    scanned, scanned_state = train(carry)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(carry))
    assert_trees_close(scanned, looped)
    assert_trees_close(scanned_state, state)


@every_optimizer
def test_vmap_equals_separate_runs(row: Row) -> None:
    tx = row.make()
    runs = [jax.tree.map(lambda p, s=scale: s * p, make_params()) for scale in (1.0, 2.0)]
    grads = [make_grads(run, seed) for seed, run in enumerate(runs)]

    def step(grads: Any, params: Any) -> Any:
        return tx.update(grads, tx.init(params), params, **row.extra)[0]

    def stack(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    together = jax.jit(jax.vmap(step))(stack(grads), stack(runs))
    apart = stack([jax.jit(step)(g, p) for g, p in zip(grads, runs, strict=True)])
    assert_trees_close(together, apart)


@every_optimizer
def test_works_in_chain(row: Row) -> None:
    params = make_params()
    halved, _ = one_step(
        row, optax.with_extra_args_support(optax.chain(row.make(), optax.scale(0.5))), params
    )
    plain, _ = one_step(row, row.make(), params)
    assert_trees_close(halved, jax.tree.map(lambda u: 0.5 * u, plain))


@every_optimizer
def test_works_in_partition(row: Row) -> None:
    params = make_params()
    labels = {"embedding": "other", "block": "ours"}
    tx = optax.partition({"ours": row.make(), "other": optax.sgd(1.0)}, labels)
    updates, _ = one_step(row, tx, params)
    alone, _ = one_step(row, row.make(), {"block": params["block"]})
    grads = make_grads(params)
    np.testing.assert_array_equal(updates["embedding"], -grads["embedding"])
    assert signature(updates["block"]) == signature(alone["block"])
    assert_trees_close(updates["block"], alone["block"])


@every_optimizer
def test_works_in_masked(row: Row) -> None:
    params = make_params()
    tx = optax.masked(row.make(), {"embedding": False, "block": True})
    updates, _ = one_step(row, tx, params)
    np.testing.assert_array_equal(updates["embedding"], make_grads(params)["embedding"])
    assert jax.tree.all(
        jax.tree.map(lambda u, g: bool(jnp.any(u != g)), updates["block"], make_grads(params)["block"])
    )


@every_optimizer
def test_works_in_multi_steps(row: Row) -> None:
    params = make_params()
    tx: Any = optax.MultiSteps(row.make(), every_k_schedule=2).gradient_transformation()
    first, second = make_grads(params, 3), make_grads(params, 4)
    update = jitted_update(row, tx)
    waiting, state = update(first, tx.init(params), params)
    updates, _ = update(second, state, params)
    inner = row.make()
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    expected, _ = eager_update(row, inner)(mean, inner.init(params), params)
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(waiting))
    assert_trees_close(updates, expected, rtol=1e-4)  # the running mean is rounded differently


@every_optimizer
def test_works_in_inject_hyperparams(row: Row) -> None:
    params = make_params()
    tx = optax.inject_hyperparams(row.factory)(learning_rate=0.01, **row.options)
    grads = make_grads(params)
    state: Any = tx.init(params)
    update = eager_update(row, optax.with_extra_args_support(tx))
    updates, _ = update(grads, state, params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.02, jnp.float32)
    doubled, _ = update(grads, state, params)
    assert_trees_close(updates, one_step(row, row.make(0.01), params)[0])
    assert_trees_close(doubled, one_step(row, row.make(0.02), params)[0])
    if row.multiplies_rate:
        assert_trees_close(doubled, jax.tree.map(lambda u: 2 * u, updates))


@every_optimizer
def test_learning_rate_may_be_a_schedule(row: Row) -> None:
    params = make_params()
    scheduled, constant = row.make(lambda count: 0.01 * (1 + count)), row.make(0.01)
    grads, states = make_grads(params), [scheduled.init(params), constant.init(params)]
    for factor in (1, 2):
        ours, states[0] = eager_update(row, scheduled)(grads, states[0], params)
        if not row.multiplies_rate:
            constant, factor = row.make(0.01 * factor), 1
        theirs, states[1] = eager_update(row, constant)(grads, states[1], params)
        assert_trees_close(ours, jax.tree.map(lambda u, f=factor: f * u, theirs))


@every_optimizer
def test_none_leaves_stay_none(row: Row) -> None:
    params = make_params() | {"absent": None}
    updates, _ = one_step(row, row.make(), params)
    assert updates["absent"] is None
    assert_trees_close(updates, one_step(row, row.make(), make_params())[0] | {"absent": None})


@every_optimizer
@pytest.mark.parametrize("tree", [{}, (), {"block": {}}, {"absent": None}], ids=str)
def test_empty_trees_are_allowed(row: Row, tree: Any) -> None:
    tx = row.make()
    updates, _ = tx.update(tree, tx.init(tree), tree, **row.extra)
    assert updates == tree


@every_optimizer
def test_ranks_zero_to_five(row: Row) -> None:
    shapes = [(), (4,), (3, 4), (2, 3, 4), (3, 2, 1, 4), (2, 1, 3, 2, 2), (0, 3)]
    params = {f"layer_{i}": {"kernel": jnp.full(shape, 0.5, jnp.float32)} for i, shape in enumerate(shapes)}
    tx = row.make()
    updates, _ = jitted_update(row, tx)(params, tx.init(params), params)
    assert signature(updates) == signature(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


@every_optimizer
def test_missing_params_give_optaxs_message(row: Row) -> None:
    if not row.needs_params:
        pytest.skip("this optimizer does not read the parameters")
    tx, params = row.make(), make_params()
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        tx.update(make_grads(params), tx.init(params), **row.extra)
    assert str(caught.value) == NO_PARAMS_MSG


@every_optimizer
def test_state_survives_a_checkpoint(row: Row) -> None:
    tx, params = row.make(), make_params()
    update = eager_update(row, tx)
    _, state = update(make_grads(params), tx.init(params), params)
    restored = flax.serialization.from_bytes(tx.init(params), flax.serialization.to_bytes(state))
    assert signature(restored) == signature(state)
    grads = make_grads(params, 5)
    for ours, theirs in zip(
        jax.tree.leaves(update(grads, restored, params)),
        jax.tree.leaves(update(grads, state, params)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@every_optimizer
def test_extreme_gradients_give_finite_updates(row: Row) -> None:
    tx, params = row.make(), make_params()
    for scale in sorted({0.0, 1e-30, min(1e30, row.largest_gradient), row.largest_gradient}):
        grads = jax.tree.map(lambda g, scale=scale: scale * jnp.sign(g), make_grads(params))
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params, **row.extra)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates)), scale


@every_optimizer
def test_map_params_finds_the_accumulators(row: Row) -> None:
    """What sharding specifications and weight surgery are built with."""
    tx, params = row.make(), make_params()
    state = tx.init(params)
    marked = optax.tree.map_params(tx, lambda _: "param", state, transform_non_params=lambda _: "other")
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    marks = jax.tree.leaves(marked)
    for (path, leaf), mark in zip(jax.tree.leaves_with_path(state), marks, strict=True):
        is_other = any(getattr(key, "name", None) in row.other_state for key in path)
        is_array = jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.int8  # codes
        is_accumulator = row.accumulates and not is_other and is_array
        assert mark == ("param" if is_accumulator else "other")


@every_optimizer
def test_state_carries_neither_params_nor_learning_rate(row: Row) -> None:
    params = make_params()
    others = jax.tree.map(lambda p: 3 * p + 1, params)
    grads = make_grads(params)
    states = [
        eager_update(row, tx)(grads, tx.init(tree), tree)[1]
        for tx, tree in (
            (row.make(0.01), params),
            (row.make(0.01), params if row.state_reads_params else others),
            (row.make(0.5), params),
        )
    ]
    if row.follows_params:
        first, *_, last = (jax.tree.leaves(state) for state in states)
        assert any(np.any(ours != theirs) for ours, theirs in zip(first, last, strict=True))
        return
    for state in states[1:]:
        for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(states[0]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
