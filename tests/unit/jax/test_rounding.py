"""Stochastic rounding: exact on average, exact where bfloat16 is, and the same in a repeated run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import celo2
from celo2.jax.rounding import make_noise, round_to_bfloat16
from helpers import quick
from helpers.weights_examples import make_weights

NUM_DRAWS = 4096
BASE = make_weights(**quick.SMALL_RULE, orthogonalize=False)


def round_all(arrays: tuple[jax.Array, ...], count: Any, number: int) -> tuple[jax.Array, ...]:
    """Rounds as a step does."""
    noises = make_noise(arrays[0].shape, len(arrays), count, number)
    return tuple(round_to_bfloat16(*pair) for pair in zip(arrays, noises, strict=True))


def test_rounding_is_unbiased_and_between_the_neighbours() -> None:
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.standard_normal(64) * 10.0 ** rng.integers(-12, 12, 64), jnp.float32)
    counts = jnp.arange(1, NUM_DRAWS + 1)
    drawn = jax.vmap(lambda count: round_all((values, -values, values), count, 3)[2])(counts)
    drawn = np.asarray(drawn, np.float64)
    exact = np.asarray(values, np.float64)
    gap = 2.0**-7 * np.abs(exact)  # at most, between neighbours
    assert (np.abs(drawn - exact) < gap).all()
    np.testing.assert_allclose(drawn.mean(0), exact, atol=0, rtol=5 * 2.0**-7 / 2 / np.sqrt(NUM_DRAWS))
    assert (drawn.min(0) < exact).sum() > 50  # to nearest, each value would have one result
    assert (drawn.max(0) > exact).sum() > 50


def test_arrays_are_rounded_independently() -> None:
    values = jnp.full(NUM_DRAWS, 1.0 + 2.0**-8, jnp.float32)  # half way between two neighbours
    rounded = np.asarray(round_all((values,) * 4, jnp.int32(2), 0), np.float64)
    assert (np.abs(np.corrcoef(rounded) - np.eye(4)) < 5 / np.sqrt(NUM_DRAWS)).all()


def test_exact_values_infinities_and_nan_are_kept() -> None:
    values = jnp.array([0.0, -0.0, 1.5, -(2.0**-120), np.inf, -np.inf, np.nan], jnp.float32)
    for count in range(1, 9):
        (rounded,) = round_all((values,), jnp.int32(count), 0)
        np.testing.assert_array_equal(np.asarray(rounded, np.float32), values)
        assert np.signbit(rounded[1])


def test_noise_of_elements_is_independent_of_the_shape() -> None:
    values = jnp.full(24, 1.0 + 2.0**-8, jnp.float32)
    flat = round_all((values,) * 4, jnp.int32(7), 5)
    for shape in ((4, 6), (2, 3, 4)):
        shaped = round_all((values.reshape(shape),) * 4, jnp.int32(7), 5)
        for array, other in zip(shaped, flat, strict=True):
            np.testing.assert_array_equal(array.ravel(), other)


def test_noise_is_that_of_the_torch_backend() -> None:
    torch = pytest.importorskip("torch")
    from celo2.torch.rounding import round_all as round_in_torch

    values = np.random.default_rng(0).standard_normal((4, 32, 9)).astype(np.float32)
    outputs = [torch.empty(32, 9, dtype=torch.bfloat16) for _ in values]
    round_in_torch(list(map(torch.from_numpy, values)), outputs, torch.tensor(11), 6)
    for array, other in zip(
        round_all(tuple(map(jnp.asarray, values)), jnp.int32(11), 6), outputs, strict=True
    ):
        np.testing.assert_array_equal(np.asarray(array, np.float32), other.float().numpy())


def _run(steps: int, state_dtype: str | None) -> tuple[dict[str, jax.Array], Any]:
    rule = celo2.scale_by_celo2(BASE, state_dtype=state_dtype)
    params = {"kernel": jnp.ones((6, 5)), "bias": jnp.zeros(5)}
    state, update, updates = rule.init(params), jax.jit(rule.update), {}
    for seed in range(steps):
        grads = jax.tree.map(lambda p, seed=seed: jax.random.normal(jax.random.key(seed), p.shape), params)
        updates, state = update(grads, state, params)
    return updates, state


def test_a_repeated_run_is_the_same_and_close_to_float32() -> None:
    updates, state = _run(5, "bfloat16")
    again, _ = _run(5, "bfloat16")
    plain, plain_state = _run(5, None)
    for name in updates:
        np.testing.assert_array_equal(updates[name], again[name])
        assert float(jnp.abs(updates[name] - plain[name]).max()) < 0.2  # steps of root mean square 1
    for family in ("momentum", "rms"):
        for rounded, exact in zip(getattr(state, family), getattr(plain_state, family), strict=True):
            assert rounded["kernel"].dtype == jnp.bfloat16
            np.testing.assert_allclose(
                np.asarray(rounded["kernel"], np.float32), exact["kernel"], rtol=0.05, atol=2e-3
            )


def test_state_takes_eight_bytes_a_parameter() -> None:
    params = {"kernel": jnp.ones((256, 256))}
    state = celo2.scale_by_celo2(state_dtype="bfloat16").init(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) < 8.2 * 256 * 256


@pytest.mark.parametrize("dtype", ["float16", "nonsense"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        celo2.scale_by_celo2(state_dtype=dtype)


def test_equal_leaves_and_successive_steps_are_rounded_differently() -> None:
    rule = celo2.scale_by_celo2(BASE, state_dtype="bfloat16")
    update = jax.jit(rule.update)
    params = {"a": jnp.ones(512), "b": jnp.ones(512), "large": jnp.ones((256, 256))}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1.0 + 2.0**-8), params)
    start: Any = rule.init(params)
    first = update(grads, start, params)[1]
    second = update(grads, first._replace(momentum=start.momentum), params)[1]
    for state, other in ((first, second), (second, first)):
        assert (state.momentum[0]["a"] != state.momentum[0]["b"]).mean() > 0.1
        assert (state.momentum[0]["large"] != other.momentum[0]["large"]).mean() > 0.1
