"""The harness: its options and errors, and what its parts leave alone."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax._src.base import NO_PARAMS_MSG

import celo2
from celo2.baselines import shampoo
from celo2.harness import match_scales, resolve_harness
from celo2.jax.harness import averages, decay, eigenbasis, norms, orthogonalizers, rows
from celo2.jax.harness.matrices import factorize_each
from helpers.contract_table import (
    CELO2,
    CELO2_BASE,
    SMALL,
    assert_trees_close,
    make_grads,
    make_params,
    make_weights,
    polar,
    signature,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

ALL_PARTS: dict[str, Any] = {
    "eigenbasis_every": 5,
    "orthogonalizer": polar,
    "row_decay": 0.9,
    "min_update_ratio": 100.0,
    "cautious_decay": True,
    "preserve_norms": True,
}
KERNEL = ("block", "up", "kernel")


def make_celo2(**options: Any) -> Any:
    return celo2.celo2(0.01, **{"weights": CELO2, "harness": celo2.Harness(**ALL_PARTS), **options})


def at(tree: Any, path: tuple[str, ...] = KERNEL) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def replaced(tree: Any, value: float) -> Any:
    """The tree with this value everywhere in the kernel."""
    block = {"up": {**tree["block"]["up"], "kernel": jnp.full_like(at(tree), value)}}
    return {**tree, "block": block}


def states_of(state: Any) -> dict[str, Any]:
    """All arrays in a state that belong to the kernel, by their paths."""
    named = jax.tree_util.tree_leaves_with_path(state)
    paths = [(jax.tree_util.keystr(key, simple=True, separator="/"), leaf) for key, leaf in named]
    return {path: leaf for path, leaf in paths if path.endswith("/".join(KERNEL))}


def train(tx: optax.GradientTransformation, params: Any, steps: int = 3) -> tuple[Any, Any]:
    state, update = tx.init(params), jax.jit(tx.update)
    for seed in range(steps):
        updates, state = update(make_grads(params, seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eigenbasis_every": 0}, ValueError, "whole number of steps from 1, or None, got 0"),
        ({"eigenbasis_every": 2.0}, ValueError, "whole number of steps from 1, or None, got 2.0"),
        ({"eigenbasis_every": True}, ValueError, "whole number of steps from 1, or None, got True"),
        ({"orthogonalizer": "newtonschulz"}, ValueError, "did you mean 'newton-schulz'"),
        ({"orthogonalizer": None}, ValueError, "unknown orthogonalizer None.*and your own as a function"),
        ({"row_decay": 1.0}, ValueError, r"row_decay must be in \[0, 1\), or None, got 1.0"),
        ({"row_decay": -0.1}, ValueError, r"row_decay must be in \[0, 1\), or None, got -0.1"),
        ({"row_decay": float("nan")}, ValueError, r"row_decay must be in \[0, 1\), or None, got nan"),
        (
            {"min_update_ratio": -1.0},
            ValueError,
            "min_update_ratio must be finite and not negative, got -1.0",
        ),
        ({"adamw_lr_scale": -1.0}, ValueError, "adamw_lr_scale must be finite and not negative, got -1.0"),
        ({"min_update_ratio": float("inf")}, ValueError, "finite and not negative, got inf"),
        ({"min_update_ratio": float("nan")}, ValueError, "finite and not negative, got nan"),
        ({"min_update_ratio": None}, ValueError, "finite and not negative, got None"),
        ({"cautious_decay": 1}, TypeError, "cautious_decay must be True or False, got 1"),
        ({"preserve_norms": None}, TypeError, "preserve_norms must be True or False, got None"),
        ({"rows": 0.9}, TypeError, "unexpected keyword argument 'rows'"),
    ],
    ids=str,
)
def test_harness_refuses_bad_options(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        celo2.Harness(**options)


def test_harness_is_a_value() -> None:
    same, other = celo2.Harness(**ALL_PARTS), celo2.Harness(**{**ALL_PARTS, "row_decay": 0.8})
    assert same == celo2.Harness(**ALL_PARTS) != other
    assert len({same, celo2.Harness(**ALL_PARTS), other}) == 2
    assert pickle.loads(pickle.dumps(same)) == same
    with pytest.raises(AttributeError):
        same.row_decay = 0.5  # type: ignore[misc]


def test_changed_has_what_differs_from_the_defaults() -> None:
    assert celo2.Harness().changed() == {}
    assert celo2.Harness(**ALL_PARTS).changed() == ALL_PARTS
    assert celo2.Harness(row_decay=0.0, min_update_ratio=0.0).changed() == {"row_decay": 0.0}


@pytest.mark.parametrize(
    "orthogonalizer", ["polar-express", "none", polar], ids=["polar-express", "none", "own"]
)
def test_coefficients_of_newton_schulz_need_newton_schulz(orthogonalizer: Any) -> None:
    with pytest.raises(ValueError, match=r"ns_coeffs are the coefficients of Newton–Schulz.*leave one of"):
        make_celo2(ns_coeffs=(3.0, -3.0, 1.0), harness=celo2.Harness(orthogonalizer=orthogonalizer))


def test_presets_are_harnesses_by_name() -> None:
    paper, plus = (resolve_harness(name) for name in ("paper", "plus"))
    assert paper == celo2.Harness()
    assert plus == resolve_harness(plus) == celo2.Harness(adamw_lr_scale=5.0)
    assert resolve_harness("eigenbasis") == dataclasses.replace(plus, eigenbasis_every=10)
    with pytest.raises(ValueError, match="unknown harness 'pluss'; did you mean 'plus'"):
        make_celo2(harness="pluss")
    with pytest.raises(TypeError, match="a Harness or the name of a preset, got None"):
        make_celo2(harness=None)


def test_a_harness_sets_adamws_share_unless_the_argument_does() -> None:
    params = {"embed": {"embedding": jnp.ones((4, 3))}}

    def size_of_a_step(**options: Any) -> float:
        tx = make_celo2(**options)
        updates, _ = tx.update(params, tx.init(params), params)
        return float(jnp.abs(updates["embed"]["embedding"]).max())

    rate = size_of_a_step(adamw_lr_scale=1.0)
    for share, options in (
        (20.0, {}),
        (5.0, {"harness": "plus"}),
        (5.0, {"harness": "eigenbasis"}),
        (3.0, {"harness": "plus", "adamw_lr_scale": 3.0}),
        (1.0, {"harness": "plus", "match": "adamw"}),
    ):
        assert size_of_a_step(**options) == pytest.approx(share * rate, rel=1e-5)


def test_unknown_match_is_refused() -> None:
    with pytest.raises(ValueError, match="match must be None or 'adamw', got 'adam'"):
        make_celo2(match="adam")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, None), (1.0, 20.0)),
        ((None, 3.0), (1.0, 3.0)),
        (("adamw", None), (0.2, 1.0)),
        (("adamw", 0.0), (0.2, 0.0)),
    ],
    ids=str,
)
def test_match_gives_size_and_share(arguments: Any, expected: tuple[float, float]) -> None:
    assert match_scales(*arguments, default=20.0) == expected


ADAM = optax.scale_by_adam()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eigenbasis.in_eigenbasis(ADAM, every=0), "every and max_side must be at least 1 and decay"),
        (lambda: eigenbasis.in_eigenbasis(ADAM, max_side=0), "got 10, 0 and 0.95"),
        (lambda: eigenbasis.in_eigenbasis(ADAM, decay=1.0), "got 10, 1024 and 1.0"),
        (lambda: rows.normalize_rows(1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: rows.normalize_rows(-0.5), r"decay must be in \[0, 1\), got -0.5"),
        (lambda: norms.floor_update_ratio(-1.0), "min_ratio must be finite and not negative, got -1.0"),
        (
            lambda: norms.floor_update_ratio(float("nan")),
            "min_ratio must be finite and not negative, got nan",
        ),
        (lambda: averages.average_params(1.1), r"decay must be in \[0, 1\], got 1.1"),
        (lambda: averages.average_params(start=-1), "start must not be negative, got -1"),
    ],
)
def test_transforms_refuse_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "tx",
    [
        decay.add_cautious_weight_decay(0.1),
        norms.floor_update_ratio(1.0),
        norms.preserve_norms(),
        averages.average_params(),
        eigenbasis.in_eigenbasis(celo2.scale_by_celo2(CELO2)),
        make_celo2(),
    ],
    ids=["decay", "floor", "norms", "average", "eigenbasis", "celo2"],
)
def test_missing_params_give_optaxs_message(tx: optax.GradientTransformation) -> None:
    params = make_params()
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        tx.update(make_grads(params), tx.init(params))
    assert str(caught.value) == NO_PARAMS_MSG


def test_orthogonalizer_must_keep_the_shape() -> None:
    tx = orthogonalizers.orthogonalize_by(lambda matrices: matrices[..., :2])
    with pytest.raises(ValueError, match=r"made matrices of shape \(3, 2\) of \(3, 4\); it must keep it"):
        tx.update({"kernel": jnp.ones((3, 4))}, tx.init({}))


def test_state_that_cannot_follow_the_basis_is_refused() -> None:
    params = {"first": jnp.eye(3), "second": jnp.eye(3)}
    masked = optax.masked(optax.scale_by_adam(), {"first": False, "second": True})
    tx = eigenbasis.in_eigenbasis(masked)
    with pytest.raises(ValueError, match=r"cannot take the inner optimizer's state 'mu' along.*put masks"):
        tx.update(params, tx.init(params), params)


def test_polar_express_is_newton_schulz_with_its_coefficients() -> None:
    params = make_params()
    named = make_celo2(harness=celo2.Harness(orthogonalizer="polar-express"))
    given = make_celo2(harness=celo2.Harness(), ns_coeffs=celo2.polar_express())
    assert_trees_close(*(train(tx, params, 1)[0] for tx in (named, given)))
    plain, _ = train(make_celo2(harness=celo2.Harness()), params, 1)
    assert np.abs(at(plain) - at(train(named, params, 1)[0])).max() > 1e-3


def test_without_an_orthogonalizer_the_direction_is_the_networks() -> None:
    params = make_params()
    without = make_celo2(harness=celo2.Harness(orthogonalizer="none"))
    kernel = {"kernel": at(params)}
    network: Any = celo2.scale_by_celo2(CELO2_BASE)  # the same arrays
    step, _ = network.update({"kernel": at(make_grads(params, 0))}, network.init(kernel), kernel)
    np.testing.assert_allclose(
        at(train(without, params, 1)[0]), kernel["kernel"] - 0.01 * step["kernel"], rtol=1e-5, atol=1e-7
    )


def test_zero_gradients_only_decay_and_leave_every_state_alone() -> None:
    params = make_params()
    without = {**ALL_PARTS, "preserve_norms": False}  # which undoes the decay
    tx = make_celo2(weight_decay=0.5, harness=celo2.Harness(**without))
    params, before = train(tx, params)
    updates, after = jax.jit(tx.update)(replaced(make_grads(params), 0.0), before, params)
    np.testing.assert_allclose(at(updates), -0.01 * 0.5 * at(params), rtol=1e-6)
    olds, news = states_of(before), states_of(after)
    names = " ".join(olds)
    assert all(name in names for name in ("left/", "left_basis", "momentum", "mean_square"))
    for path, old in olds.items():
        assert np.any(old), path
        np.testing.assert_array_equal(news[path], old, err_msg=path)


def test_zero_gradients_keep_factors_and_row_means_when_bases_are_due() -> None:
    parts = celo2.Harness(**{**ALL_PARTS, "eigenbasis_every": 1})
    params, before = train(make_celo2(harness=parts), make_params())
    update = jax.jit(make_celo2(harness=parts).update)
    updates, after = update(replaced(make_grads(params), 0.0), before, params)
    np.testing.assert_allclose(at(updates), 0.0, atol=1e-7)  # the norm is kept but for rounding
    olds, news = states_of(before), states_of(after)
    kept = [path for path in olds if any(name in path for name in ("left/", "right/", "mean_square"))]
    assert len(kept) == 3
    for path in kept:
        np.testing.assert_array_equal(news[path], olds[path], err_msg=path)


@pytest.mark.parametrize("steps", [0, 3], ids=["at-first", "later"])
def test_nonfinite_gradients_leave_every_state_alone(steps: int) -> None:
    tx, params = make_celo2(skip_nonfinite_gradients=True, weight_decay=0.1), make_params()
    params, before = train(tx, params, steps)
    update = jax.jit(tx.update)
    updates, after = update(replaced(make_grads(params), float("nan")), before, params)
    assert not np.any(at(updates))
    assert int(optax.tree.get(after, "num_nonfinite")) == 1
    olds, news = states_of(before), states_of(after)
    bases = [path for path in olds if "basis" in path]  # at first those of no gradient
    assert len(bases) == 2
    for path in olds.keys() - (bases if steps == 0 else []):
        np.testing.assert_array_equal(news[path], olds[path], err_msg=path)
    for path in bases:
        gram = np.asarray(news[path]) @ np.matrix_transpose(news[path])
        np.testing.assert_allclose(gram[0], np.eye(gram.shape[-1]), atol=1e-5)
    updates, _ = update(make_grads(params), after, params)
    assert np.all(np.isfinite(at(updates)))
    assert np.any(at(updates))


def test_bfloat16_parameters_and_state_with_all_parts() -> None:
    params = make_params(jnp.bfloat16)
    tx = make_celo2(state_dtype="bfloat16", weight_decay=0.1)
    trained, state = train(tx, params, 7)  # the bases are renewed once
    assert signature(trained) == signature(params)
    assert signature(state) == signature(tx.init(params))
    dtypes = {path: leaf.dtype for path, leaf in states_of(state).items()}
    for path, dtype in dtypes.items():
        narrow = "momentum" in path or "rms" in path
        assert dtype == (jnp.bfloat16 if narrow else jnp.float32), path
    before, after = (np.linalg.norm(np.asarray(at(tree), np.float32)) for tree in (params, trained))
    assert np.any(at(trained) != at(params))
    np.testing.assert_allclose(after, before, rtol=2.0**-8)  # rounding to nearest


def test_norms_are_kept_but_of_matrices_that_are_zero_at_first() -> None:
    params = replaced(make_params(), 0.0)
    params["block"]["layers"] = {"kernel": make_stack()}
    tx = make_celo2(harness=celo2.Harness(preserve_norms=True))
    trained, state = train(tx, params)
    assert [path for path in states_of(state) if "radius" in path]  # it is the rule's
    free, _ = train(make_celo2(harness=celo2.Harness()), params)
    assert np.any(at(free))
    np.testing.assert_allclose(at(trained), at(free), rtol=1e-5)
    ours, theirs = (tree["block"]["layers"]["kernel"] for tree in (trained, params))
    assert np.any(ours != theirs)
    np.testing.assert_allclose(*(np.linalg.norm(x, axis=(1, 2)) for x in (ours, theirs)), rtol=1e-6)
    assert not np.allclose(
        *(np.linalg.norm(t["block"]["layers"]["kernel"], axis=(1, 2)) for t in (free, params)), rtol=1e-4
    )


def make_stack() -> jax.Array:
    """Two matrices of different norms."""
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.standard_normal((2, 3, 4)) * np.array([0.1, 1.0]).reshape(2, 1, 1), jnp.float32)


def as_tuple(tree: Any) -> Any:
    return tree["a"], tree["b"], tree["c"]


def as_named(tree: Any) -> Any:
    return optax.TraceState((tree["a"], None, [tree["b"], tree["c"]]))  # type: ignore[arg-type]


@pytest.mark.parametrize("nest", [as_tuple, as_named], ids=["tuple", "none-and-list"])
def test_eigenbasis_tells_parameters_from_momenta(nest: Any) -> None:
    """Two momenta of three arrays of one shape: the k-th of six belongs to the k-th of three, modulo 3."""
    config = SMALL.replace(initial_momentum_decays=(0.9, 0.5), initial_adafactor_decays=(0.9, 0.5))
    inner = celo2.scale_by_celo2(
        make_weights(config),
        dimension_numbers=lambda tree: jax.tree.map(lambda _: celo2.DimensionNumbers(1, 2), tree),
    )
    tx = eigenbasis.in_eigenbasis(inner, every=1)
    params = {name: jax.random.normal(jax.random.key(seed), (3, 3)) for seed, name in enumerate("abc")}
    trees = [make_grads(params, seed) for seed in range(4)]

    def run(nest: Any) -> Any:
        state, update, updates = tx.init(nest(params)), jax.jit(tx.update), None
        for grads in trees:
            updates, state = update(nest(grads), state, nest(params))
        return updates

    alone = {name: run(lambda tree, name=name: tree[name]) for name in params}
    assert np.any(alone["a"])
    assert_trees_close(run(nest), nest(alone), rtol=1e-4)


def test_floor_leaves_steps_alone_whose_squares_are_zero() -> None:
    tx: Any = norms.floor_update_ratio(1.0)
    params = {"kernel": jnp.ones((2, 2))}
    for size in (0.0, 1e-30):
        step = {"kernel": jnp.full((2, 2), size)}
        updates, _ = tx.update(step, tx.init(params), params)
        np.testing.assert_array_equal(updates["kernel"], step["kernel"])


def test_cautious_decay_obeys_its_mask() -> None:
    params = make_params()
    tx: Any = decay.add_cautious_weight_decay(0.5, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree))
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(at(updates), 1.5 * at(params), rtol=1e-6)
    np.testing.assert_array_equal(updates["block"]["up"]["bias"], params["block"]["up"]["bias"])


def test_average_behind_celo2_is_that_of_the_parameters_seen() -> None:
    params = make_params()
    tx = optax.chain(make_celo2(), averages.average_params(1.0))
    state, update, seen = tx.init(params), jax.jit(tx.update), []
    for seed in range(3):
        updates, state = update(make_grads(params, seed), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    expected = jax.tree.map(lambda *leaves: sum(leaves) / 3, *seen)
    assert_trees_close(averages.averaged_params(state), expected)


def test_average_of_bfloat16_parameters_is_float32() -> None:
    params = {"kernel": jnp.full((2, 2), 1.0, jnp.bfloat16)}
    tx = averages.average_params(0.999)
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update({"kernel": jnp.full((2, 2), 2.0**-9, jnp.bfloat16)}, state, params)
    average = averages.averaged_params(state)["kernel"]
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 1 + 2.0**-9, rtol=1e-6)  # of which bfloat16 sees nothing


@pytest.mark.parametrize("count", [0, 2])
def test_averaged_params_needs_one_average(count: int) -> None:
    state = optax.chain(optax.sgd(0.1), *[averages.average_params()] * count).init(make_params())
    with pytest.raises(KeyError, match=f"the state has {count} averages of parameters, expected one"):
        averages.averaged_params(state)


MESH_PARTS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "eigenbasis": lambda numbers: celo2.in_eigenbasis(optax.scale_by_adam(), dimension_numbers=numbers),
    "rows": lambda numbers: celo2.normalize_rows(dimension_numbers=numbers),
    "floor": lambda numbers: celo2.floor_update_ratio(1.0, dimension_numbers=numbers),
    "norms": lambda numbers: celo2.preserve_norms(dimension_numbers=numbers),
    "orthogonalizer": lambda numbers: celo2.orthogonalize_by(jnp.sign, dimension_numbers=numbers),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("make", MESH_PARTS.values(), ids=MESH_PARTS.keys())
def test_convolutions_are_seen_as_matrices_on_any_mesh(make: Any, kind: AxisType) -> None:
    """Reshaping an array that is sharded over an explicit axis needs a stated sharding."""
    numbers = {"kernel": celo2.DimensionNumbers((0, 1, 2), 3)}
    params = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 8))}
    tx = make(numbers)
    state, update = tx.init(params), jax.jit(tx.update)
    expected, _ = update(params, update(params, state, params)[1], params)
    mesh = jax.make_mesh((2,), ("model",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec(None, None, "model")))
        state = tx.init(sharded)
        _, state = update(sharded, state, sharded)
        updates, _ = update(sharded, state, sharded)
    np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=0, atol=2e-5)


def test_state_of_one_byte_cannot_follow_a_basis() -> None:
    with pytest.raises(ValueError, match='"int8" does not go with eigenbasis_every'):
        celo2.celo2(1e-3, state_dtype="int8", harness=celo2.Harness(eigenbasis_every=2))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda: eigenbasis.in_eigenbasis(optax.scale_by_adam(), every=2), id="eigenbasis"),
        pytest.param(shampoo.scale_by_shampoo, id="shampoo"),
    ],
)
def test_factorizations_on_cpus_take_one_matrix_at_a_time(
    optimizer: Callable[[], optax.GradientTransformation],
) -> None:
    # Batches would wait for each other for ever: see `factorize_each`.
    tx, params = optimizer(), {"stack": jnp.ones((3, 4, 5, 6)), "matrix": jnp.ones((3, 7, 8))}
    state = jax.vmap(tx.init)(params)
    program = jax.jit(jax.vmap(tx.update)).lower(params, state, params).compile().as_text() or ""
    calls = re.findall(r"= \(?f32\[([\d,]+)\].*custom_call_target=.lapack_", program)
    assert {len(shape.split(",")) for shape in calls} == {2}
    assert {shape.split(",")[0] for shape in calls} == {"5", "6", "7", "8"}


def test_a_factorization_of_each_matrix_is_that_of_the_batch() -> None:
    matrices = jax.random.normal(jax.random.key(0), (2, 3, 5, 5))
    factorize = functools.partial(factorize_each, jnp.linalg.qr)
    ours, batched = jax.vmap(factorize)(matrices), jnp.linalg.qr(matrices)
    assert_trees_close(ours, batched, 1e-6)
