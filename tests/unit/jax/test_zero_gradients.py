"""A matrix whose gradient is exactly zero is left alone, by every program of the JAX rule."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import celo2
from celo2.config import RuleConfig
from celo2.jax import accumulators, batching, dispatch, step
from celo2.jax.dimensions import make_axes
from helpers import quick
from helpers.tolerances import relative_error
from oracle import rule

CONFIG = RuleConfig(orthogonalize=False, **quick.SMALL_RULE)
TOLERANCE = 3e-6  # in float32 (7e-7)
EXACT = 1e-14  # in float64 (2e-15)
SHAPES: dict[str, tuple[tuple[int, ...], Any]] = {  # and which entries of the gradient are zero
    "matrix": ((40, 33), ...),
    "stack": ((3, 33, 40), 1),
    "factored in front": ((9, 8, 3, 2), (slice(None), 2)),
    "vector": ((31,), ...),
    "scalar": ((), ...),
}
CASES = [
    *((name, shape, CONFIG) for name in ("plain", "xla") for shape in SHAPES),
    *(("pallas_interpret", shape, CONFIG) for shape in ("matrix", "stack")),
    ("plain", "stack", CONFIG.replace(normalize_output=False, precondition_output=True)),
    ("xla", "stack", CONFIG.replace(orthogonalize=True, ns_iters=2)),
]


def make_weights(config: RuleConfig, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = config.weight_shapes().items()
    return {name: (0.3 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes}


def assert_left_alone(name: Any, shape: tuple[int, ...], idle: Any, config: RuleConfig, dtype: Any) -> None:
    """Three steps, in the second of which the array is idle, in part. Held to the oracle."""
    rng, weights = np.random.default_rng(1), make_weights(config, dtype)
    limit = EXACT if dtype == np.float64 else TOLERANCE
    options = rule.make_options(dataclasses.asdict(config))
    expected_state = rule.init(shape, options)
    state = accumulators.init(shape, make_axes(shape), config, jnp.dtype(dtype))
    param = rng.standard_normal(shape).astype(dtype)
    one = partial(step.update, weights, axes=make_axes(shape), config=config, skip_zero=True)
    with dispatch.use(name):
        update = jax.jit(one)
        for number in range(3):
            grad = np.asarray(0.1 * rng.standard_normal(shape), dtype)
            if number == 1:
                grad[idle] = 0.0
            before = state
            found, state = update(jnp.asarray(grad), jnp.asarray(param), state, number + 1)
            expected, expected_state = rule.update(
                weights, expected_state, grad, param, options, skip_zero=True
            )
            assert relative_error(found, expected) <= limit
            own = dataclasses.asdict(expected_state)
            for family in ("momentum", "rms", "row", "col")[: 3 + (len(shape) > 1)]:
                for ours, theirs in zip(getattr(state, family), own[family], strict=True):
                    assert relative_error(np.reshape(ours, theirs.shape), theirs) <= limit, family
            if number == 1:
                assert not np.any(np.asarray(found)[idle])
                for old, new in zip(before.momentum + before.rms, state.momentum + state.rms, strict=True):
                    np.testing.assert_array_equal(np.asarray(old)[idle], np.asarray(new)[idle])


@pytest.mark.parametrize(("name", "shape", "config"), CASES, ids=lambda value: str(value)[:16])
def test_idle_matrices_have_no_step_and_keep_their_state(name: str, shape: str, config: RuleConfig) -> None:
    assert_left_alone(name, *SHAPES[shape], config, np.float32)


@pytest.mark.parametrize("name", ["plain", "xla"])
def test_idle_matrices_in_float64(name: str) -> None:
    with jax.enable_x64(True):
        assert_left_alone(name, *SHAPES["stack"], CONFIG, np.float64)


@pytest.mark.parametrize("name", ["plain", "xla", "pallas_interpret"])
def test_nan_is_no_zero_and_the_option_is_off_by_itself(name: Any) -> None:
    shape = (2, 33, 40)
    state = accumulators.init(shape, make_axes(shape), CONFIG, jnp.dtype("float32"))
    grad, param = jnp.zeros(shape), jnp.ones(shape)
    one = partial(step.update, make_weights(CONFIG), axes=make_axes(shape), config=CONFIG)
    with dispatch.use(name):
        moved, _ = jax.jit(one)(grad, param, state, 1)
        bad = grad.at[0, 3, 5].set(jnp.nan)
        found, _ = jax.jit(partial(one, skip_zero=True))(bad, param, state, 1)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(moved), (1, 2))), 1.0, rtol=1e-3)
    assert np.isnan(found[0]).all()
    assert not np.any(found[1])


@pytest.mark.parametrize("together", [True, False], ids=["stacked", "one by one"])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_an_idle_expert_only_decays(
    together: bool, state_dtype: str | None, monkeypatch: pytest.MonkeyPatch, standard_promotion: None
) -> None:
    """Of two equal small stacks, which are updated together, and of a vector of the rule's."""
    monkeypatch.setattr(batching, "on_one_device", lambda: together)
    weights = celo2.Weights(make_weights(CONFIG), CONFIG)
    tx = celo2.celo2_base(1e-2, weights=weights, weight_decay=0.5, state_dtype=state_dtype)
    rng = np.random.default_rng(0)
    shapes = {"experts": (3, 8, 9), "others": (3, 8, 9), "scale": (8,)}
    params = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    grads = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    update = jax.jit(tx.update)
    _, before = update(grads, tx.init(params), params)
    grads |= {"experts": grads["experts"].at[2].set(0.0), "scale": jnp.zeros(8)}
    updates, after = update(grads, before, params)
    decay = jax.tree.map(lambda param: -1e-2 * 0.5 * param, params)
    np.testing.assert_allclose(updates["experts"][2], decay["experts"][2], rtol=1e-6)
    np.testing.assert_allclose(updates["scale"], decay["scale"], rtol=1e-6)
    for name in ("experts", "others"):
        steps = np.asarray(updates[name] - decay[name])[: 2 if name == "experts" else 3]
        np.testing.assert_allclose(np.sqrt(np.mean(steps**2, (1, 2))), 1e-2, rtol=1e-3)
    for family in ("momentum", "rms", "row", "col"):
        (old,), (new,) = getattr(before[0], family), getattr(after[0], family)
        np.testing.assert_array_equal(old["experts"][2], new["experts"][2])
        np.testing.assert_array_equal(old["scale"], new["scale"])
        assert np.any(old["experts"][1] != new["experts"][1])


@pytest.mark.parametrize("factory", [celo2.celo2, celo2.celo2_base])
@pytest.mark.parametrize("skip", [True, False])
def test_the_references_behaviour_is_an_option(factory: Any, skip: bool, standard_promotion: None) -> None:
    config = CONFIG.replace(orthogonalize=factory is celo2.celo2)
    params = {"block_0": {"kernel": jnp.eye(8)}, "block_1": {"kernel": jnp.eye(8)}}
    tx = factory(1e-2, weights=celo2.Weights(make_weights(config), config), skip_zero_gradients=skip)
    grads = {"block_0": {"kernel": jnp.zeros((8, 8))}, "block_1": {"kernel": jnp.eye(8)}}
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    sizes = jax.tree.leaves(jax.tree.map(lambda u: float(jnp.sqrt(jnp.mean(u * u))), updates))
    np.testing.assert_allclose(sizes, [0.0 if skip else 1e-2, 1e-2], rtol=1e-3)


def test_scale_by_celo2_keeps_the_references_way_unless_told() -> None:
    params = {"kernel": jnp.eye(8)}
    updates: Any
    for options, size in (({}, 1.0), ({"skip_zero_gradients": True}, 0.0)):
        tx = celo2.scale_by_celo2(celo2.Weights(make_weights(CONFIG), CONFIG), **options)
        updates, _ = tx.update({"kernel": jnp.zeros((8, 8))}, tx.init(params), params)
        assert float(jnp.linalg.norm(updates["kernel"])) / 8 == pytest.approx(size, abs=1e-3)
