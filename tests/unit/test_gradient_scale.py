"""`normalize_gradients`: a factor on the loss cancels, what changes from step to step stays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import celo2
from celo2.jax.gradient_scale import normalize_gradients


def make_grads(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(3), jnp.float32),
    }


def run(optimizer: optax.GradientTransformation, factor: float, steps: int = 4) -> list[dict[str, jax.Array]]:
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    state, found = optimizer.init(params), []
    for seed in range(steps):
        grads = jax.tree.map(lambda g: factor * g, make_grads(seed))
        updates, state = optimizer.update(grads, state, params)
        found.append(updates)
    return found


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**-10, 2.0**30])
def test_the_rule_behind_it_ignores_a_factor_on_the_loss(factor: float) -> None:
    rule = optax.chain(normalize_gradients(1e-2), celo2.scale_by_celo2(orthogonalize=False))
    for scaled, plain in zip(run(rule, factor), run(rule, 1.0), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), scaled, plain)


def test_without_it_the_rule_does_not() -> None:
    rule = celo2.scale_by_celo2(orthogonalize=False)
    scaled, plain = run(rule, 2.0**-20)[-1], run(rule, 1.0)[-1]
    assert float(jnp.abs(scaled["kernel"] - plain["kernel"]).max()) > 0.1


def test_each_array_gets_the_target_and_keeps_its_changes() -> None:
    decay, target = 0.9, 0.5
    found = run(normalize_gradients(target, decay=decay), 3.0)
    mean = {"kernel": 0.0, "bias": 0.0}
    for step, updates in enumerate(found, start=1):
        for name, grad in make_grads(step - 1).items():
            grad = 3.0 * np.asarray(grad, np.float64)
            mean[name] = decay * mean[name] + (1 - decay) * np.mean(grad**2)
            expected = target * grad / np.sqrt(mean[name] / (1 - decay**step))
            np.testing.assert_allclose(updates[name], expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_one_broken_gradient_passes_through_and_is_forgotten(bad: float) -> None:
    tx = normalize_gradients(1.0)
    grads = {"kernel": jnp.full((2, 2), 3.0)}
    _, state = tx.update(grads, tx.init(grads))
    broken, state = tx.update({"kernel": grads["kernel"].at[0, 0].set(bad)}, state)
    assert not abs(float(broken["kernel"][0, 0])) < 1e20
    after, _ = tx.update(grads, state)
    assert np.isfinite(after["kernel"]).all()
    assert (np.asarray(after["kernel"]) > 0.5).all()


def test_zero_gradients_stay_zero_and_dtypes_are_kept() -> None:
    tx = normalize_gradients(1.0)
    grads = {"zero": jnp.zeros(3), "half": jnp.ones(2, jnp.bfloat16), "empty": jnp.zeros((0, 2))}
    updates, _ = tx.update(grads, tx.init(grads))
    assert not updates["zero"].any()
    assert updates["half"].dtype == jnp.bfloat16
    assert updates["empty"].shape == (0, 2)


@pytest.mark.parametrize("options", [{"target": 0.0}, {"target": 1.0, "decay": 1.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        normalize_gradients(**options)
