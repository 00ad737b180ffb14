"""`normalize_gradients`: a factor on the loss cancels, what changes from step to step stays.

`share_outside`, `watch_gradients`: how much of a network has gradients of an unknown scale.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import celo2
from celo2.gradient_range import gradient_range
from celo2.jax.gradient_scale import normalize_gradients, share_outside, watch_gradients


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
            mean[name] = decay * mean[name] + (1 - decay) * float(np.mean(grad**2))
            expected = target * grad / np.sqrt(mean[name] / (1 - decay**step))
            np.testing.assert_allclose(updates[name], expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("steps_before", [0, 1])
def test_one_broken_gradient_passes_through_and_is_forgotten(bad: float, steps_before: int) -> None:
    tx = normalize_gradients(1.0)
    grads = {"kernel": jnp.full((2, 2), 3.0)}
    state = tx.init(grads)
    for _ in range(steps_before):
        _, state = tx.update(grads, state)
    wrong = {"kernel": grads["kernel"].at[0, 0].set(bad)}
    broken: Any
    after: Any
    broken, state = tx.update(wrong, state)
    np.testing.assert_array_equal(broken["kernel"], wrong["kernel"])
    after, _ = tx.update(grads, state)
    np.testing.assert_allclose(after["kernel"], 1.0, rtol=1e-5)


def test_zero_gradients_stay_zero_and_dtypes_are_kept() -> None:
    tx = normalize_gradients(1.0)
    grads = {"zero": jnp.zeros(3), "half": jnp.ones(2, jnp.bfloat16), "empty": jnp.zeros((0, 2))}
    updates: Any
    updates, _ = tx.update(grads, tx.init(grads))
    assert not updates["zero"].any()
    assert updates["half"].dtype == jnp.bfloat16
    assert updates["empty"].shape == (0, 2)


@pytest.mark.parametrize("options", [{"target": 0.0}, {"target": 1.0, "decay": 1.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        normalize_gradients(**options)


LOW, HIGH = 1e-4, 1.0


def full(rms: float, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """Of alternating sign, so that the mean is not the root mean square."""
    signs = np.where(np.arange(math.prod(shape)) % 2, -1.0, 1.0)
    return jnp.asarray((rms * signs).reshape(shape), dtype)


@pytest.mark.parametrize(
    ("rms", "outside"),
    [(1e-30, 1), (0.9e-4, 1), (1.1e-4, 0), (0.9, 0), (1.1, 1), (1e30, 1), (np.inf, 1), (np.nan, 1)],
)
def test_an_array_is_outside_below_low_above_high_and_when_not_finite(rms: float, outside: int) -> None:
    assert float(share_outside({"kernel": full(rms, 4, 2)}, LOW, HIGH)) == outside


def test_an_array_is_judged_by_its_root_mean_square() -> None:
    one_of_four = jnp.asarray([2.0, 0.0, 0.0, 0.0])  # of root mean square 1
    assert float(share_outside(one_of_four, LOW, 1.001)) == 0
    assert float(share_outside(one_of_four, LOW, 0.999)) == 1


def test_arrays_count_by_their_parameters() -> None:
    grads = {"kernel": full(1e-6, 5, 3), "bias": full(0.1, 4), "scalar": full(10.0)}
    np.testing.assert_allclose(share_outside(grads, LOW, HIGH), (15 + 1) / (15 + 4 + 1), rtol=1e-6)


def test_arrays_without_a_gradient_are_left_out() -> None:
    grads = {
        "frozen": jnp.zeros((9, 9)),
        "empty": jnp.zeros((0, 2)),
        "none": None,
        "masked": optax.MaskedNode(),
    }
    assert float(share_outside(grads, LOW, HIGH)) == 0
    assert float(share_outside({**grads, "bias": full(1e-6, 4)}, LOW, HIGH)) == 1
    assert float(share_outside({}, LOW, HIGH)) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_measured_in_float32(dtype: Any) -> None:
    many = full(2.0**-14, 300, 300, dtype=dtype)  # its square is no float16, its sum of squares no bfloat16
    share = share_outside({"kernel": many}, 0.99 * 2.0**-14, 1.01 * 2.0**-14)
    assert share.dtype == jnp.float32
    assert float(share) == 0


def test_it_can_be_vmapped_and_jitted() -> None:
    runs = {"kernel": jnp.stack([full(rms, 2, 2) for rms in (1e-6, 1e-2, 1e2)])}
    shares = jax.jit(jax.vmap(lambda grads: share_outside(grads, LOW, HIGH)))(runs)
    np.testing.assert_array_equal(shares, [1, 0, 1])


@pytest.mark.parametrize("weights", ["celo2", "celo2-base"])
def test_the_range_is_the_weights_own_unless_given(weights: str) -> None:
    low, high = gradient_range(celo2.load_checkpoint(weights))
    below, inside, above = full(0.9 * low, 3), full(1.1 * low, 3), full(1.1 * high, 3)
    for given in (weights, celo2.load_checkpoint(weights)):
        assert float(share_outside(below, weights=given)) == 1
        assert float(share_outside(inside, weights=given)) == 0
        assert float(share_outside(above, weights=given)) == 1
    assert float(share_outside(below, low=0.5 * low, weights=weights)) == 0
    assert float(share_outside(above, high=2 * high, weights=weights)) == 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), (1.0, np.inf)])
def test_a_range_that_is_none_is_refused(low: float, high: float) -> None:
    for call in (lambda: share_outside({}, low, high), lambda: watch_gradients(low, high)):
        with pytest.raises(ValueError, match="0 < low < high < ∞"):
            call()


def test_watching_changes_nothing_and_keeps_the_share_of_the_last_gradients() -> None:
    tx = optax.chain(watch_gradients(LOW, HIGH), optax.scale(-1.0))
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    state = tx.init(params)
    assert float(optax.tree_utils.tree_get(state, "share_outside")) == 0
    for rms, share in ((1e-6, 0.75), (1e-2, 0.0)):
        grads = {"kernel": full(rms, 3, 2), "bias": full(0.1, 2)}
        updates, state = jax.jit(tx.update)(grads, state)
        jax.tree.map(lambda update, grad: np.testing.assert_array_equal(update, -grad), updates, grads)
        assert float(optax.tree_utils.tree_get(state, "share_outside")) == share


def test_watching_behind_normalisation_sees_the_new_scale() -> None:
    grads = {"kernel": full(1e-9, 3, 2)}
    for first, share in ((optax.identity(), 1.0), (normalize_gradients(1e-2), 0.0)):
        tx = optax.chain(first, watch_gradients(LOW, HIGH))
        _, state = tx.update(grads, tx.init(grads))
        assert float(optax.tree_utils.tree_get(state, "share_outside")) == share


def test_arrays_of_adamw_can_be_masked_out() -> None:
    params = {"embedding": jnp.ones((50, 4)), "layer": {"kernel": jnp.ones((4, 8))}}
    mask = jax.tree.map(lambda label: label == "celo2", celo2.param_labels(params))
    grads = {"embedding": full(1e-9, 50, 4), "layer": {"kernel": full(1e-2, 4, 8)}}
    updates: Any
    for tx, share in (
        (watch_gradients(LOW, HIGH), 200 / 232),
        (optax.masked(watch_gradients(LOW, HIGH), mask), 0.0),
    ):
        updates, state = tx.update(grads, tx.init(params))
        np.testing.assert_allclose(optax.tree_utils.tree_get(state, "share_outside"), share, rtol=1e-6)
        np.testing.assert_array_equal(updates["embedding"], grads["embedding"])
