"""Options and dtypes of the JAX optimizers: what they refuse, and the precision of AdamW's share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import celo2

PARAMS = {"bias": jnp.ones(4)}  # AdamW's


@pytest.mark.parametrize("make", [celo2.celo2, celo2.celo2_base], ids=["celo2", "celo2-base"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rate": -1}, ValueError, "learning_rate must be finite and not negative, got -1"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite"),
        ({"learning_rate": "1e-3"}, TypeError, r"got '1e-3' \(str\); YAML reads 1e-3 as text"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be finite"),
        ({"weight_decay": None}, TypeError, r"weight_decay must be a number, .*got None \(NoneType\)"),
    ],
    ids=["rate", "nan", "text", "decay", "none"],
)
def test_numbers_out_of_range_are_refused(make: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**{"learning_rate": 1e-3, **options})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"adamw_lr_scale": -1}, ValueError),
        ({"adamw_betas": (0.9,)}, ValueError),
        ({"adamw_betas": (0.9, 1.0)}, ValueError),
        ({"adamw_betas": 0.9}, TypeError),
        ({"adamw_betas": np.float32(0.9)}, TypeError),
        ({"adamw_betas": (0.9, "0.95")}, TypeError),
        ({"adamw_betas": (beta for beta in (0.9, 0.95))}, TypeError),
    ],
    ids=["share", "one", "range", "number", "numpy", "text", "generator"],
)
def test_numbers_of_adamws_share_out_of_range_are_refused(options: Any, error: Any) -> None:
    with pytest.raises(error, match=f"{next(iter(options))} must be"):
        celo2.celo2(1e-3, **options)


@pytest.mark.usefixtures("standard_promotion")
def test_arrays_tracers_and_schedules_are_not_checked() -> None:
    """A sweep may trace any of them, and `optax.inject_hyperparams` does."""
    tx = optax.inject_hyperparams(celo2.celo2)(learning_rate=optax.constant_schedule(-1.0), weight_decay=0.1)
    updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    assert np.all(jax.tree.leaves(updates)[0] > 0)

    def step(rate: Any, betas: Any) -> Any:
        tx = celo2.celo2(rate, adamw_betas=(betas[0], betas[1]))
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]

    assert np.all(jax.jit(step)(jnp.float32(-1.0), jnp.array([0.9, 0.95]))["bias"] > 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"skip_nonfinite_gradients": True}], ids=["plain", "finite"])
def test_adamws_moments_are_float32_for_narrower_parameters(dtype: str, options: Any) -> None:
    """In float16 a small gradient's square is zero, and so is Adam's ε: the second step would be NaN."""
    narrow = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = celo2.celo2(3e-3, **options)

    def two_steps(params: Any) -> tuple[Any, Any]:
        grads, state = jax.tree.map(lambda p: 1e-4 * p, params), tx.init(params)
        _, state = tx.update(grads, state, params)
        return tx.update(grads, state, params)

    (updates, state), (exact, wide) = two_steps(narrow), two_steps(PARAMS)
    assert updates["bias"].dtype == dtype
    np.testing.assert_allclose(updates["bias"].astype(jnp.float32), exact["bias"], rtol=2**-7)
    assert jax.tree.structure(state) == jax.tree.structure(wide)
    assert (
        optax.tree.get(state, "mu")["bias"].dtype == optax.tree.get(state, "nu")["bias"].dtype == jnp.float32
    )


def test_adamws_moments_stay_sharded_as_narrower_parameters_are() -> None:
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = jax.device_put({"bias": jnp.ones(4, jnp.bfloat16)}, sharding)
    state = celo2.celo2(1e-3).init(params)
    for name in ("mu", "nu"):
        assert optax.tree.get(state, name)["bias"].sharding.is_equivalent_to(sharding, 1)


def test_weights_of_the_other_variant_name_their_own_optimizer() -> None:
    with pytest.raises(
        ValueError, match=r"these are Celo2-base weights .*use celo2_base .*leave weights= out"
    ):
        celo2.celo2(1e-3, weights="celo2-base")
    with pytest.raises(ValueError, match=r"these are Celo2 weights .*use celo2 .*leave weights= out"):
        celo2.celo2_base(1e-3, weights="celo2")


def test_a_python_number_among_the_parameters_is_trained_as_by_optax() -> None:
    params = {"w": jnp.ones((4, 4)), "b": 0.0}
    tx = celo2.celo2(1e-3)
    updates: Any = tx.update({"w": jnp.ones((4, 4)), "b": 1.0}, tx.init(params), params)[0]
    assert float(updates["b"]) == pytest.approx(-0.02, rel=1e-4)
