"""Momenta in one byte: exact on average, close, kept when nothing changes, and of the promised size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import celo2
from celo2.constants import CODE_LEVELS
from celo2.jax.quantization import Quantized, decode, encode, zeros_like
from celo2.jax.rounding import make_noise
from celo2.training.timing import count_bytes
from helpers import quick
from helpers.weights_examples import make_weights

NUM_DRAWS = 4096
BASE = make_weights(**quick.SMALL_RULE, orthogonalize=False)


def round_trip(array: jax.Array, count: int = 1) -> jax.Array:
    (noise,) = make_noise(array.shape, 1, jnp.int32(count), 0)
    return decode(encode(array, noise), jnp.float32)


def gap(share: np.ndarray) -> np.ndarray:
    """The distance of the two values of codes around a share of the row's largest magnitude."""
    low = np.floor(CODE_LEVELS * np.sqrt(share))
    return (2 * low + 1) / CODE_LEVELS**2


def test_rounding_is_unbiased_and_between_neighbours() -> None:
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.standard_normal((8, 16)) * 10.0 ** rng.integers(-6, 6, (8, 1)), jnp.float32)
    drawn = np.asarray(jax.vmap(lambda count: round_trip(values, count))(jnp.arange(NUM_DRAWS)), np.float64)
    exact = np.asarray(values, np.float64)
    scale = np.abs(exact).max(-1, keepdims=True)
    width = gap(np.abs(exact) / scale) * scale
    assert (np.abs(drawn - exact) <= width * (1 + 1e-3) + 1e-6 * scale).all()
    assert (np.abs(drawn.mean(0) - exact) < 5 * width / 2 / np.sqrt(NUM_DRAWS) + 1e-6 * scale).all()
    assert (drawn.std(0) > 0).mean() > 0.8  # the largest of each row is kept


@pytest.mark.parametrize("options", [None, celo2.compiler_options("cpu")], ids=["default", "fast"])
def test_values_of_codes_are_kept(options: Any) -> None:
    codes = jnp.arange(-CODE_LEVELS, CODE_LEVELS + 1, dtype=jnp.int8)[None]
    stored = Quantized(codes, jnp.asarray([[0.37]], jnp.float32))
    again = jax.jit(
        lambda count: encode(decode(stored, jnp.float32), make_noise(codes.shape, 1, count, 0)[0])
    )
    compiled = again.lower(jnp.int32(0)).compile(options)
    for count in range(64):
        new = compiled(jnp.int32(count))
        np.testing.assert_array_equal(new.codes, codes)
        np.testing.assert_array_equal(new.scale, stored.scale)


def test_zeros_stay_zero_and_nan_spoils_its_row_alone() -> None:
    values = jnp.asarray([[0.0, 0.0], [1.0, jnp.nan], [1.0, -0.5]], jnp.float32)
    result = np.asarray(round_trip(values))
    np.testing.assert_array_equal(result[0], 0)
    assert np.isnan(result[1]).all()
    np.testing.assert_allclose(result[2], values[2], atol=float(gap(np.asarray(0.5))))
    for shape in ((), (0,), (3, 0), (2, 3)):
        np.testing.assert_array_equal(decode(zeros_like(jnp.ones(shape)), jnp.float32), np.zeros(shape))
        np.testing.assert_array_equal(round_trip(jnp.zeros(shape)), np.zeros(shape))


def test_an_optimizer_keeps_its_direction_in_a_third_of_the_state() -> None:
    rng = np.random.default_rng(1)
    params = {"kernel": jnp.asarray(rng.standard_normal((64, 96)), jnp.float32), "bias": jnp.ones(96)}
    grads = [
        jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), params) for _ in range(8)
    ]
    steps, sizes = {}, {}
    for dtype in (None, "bfloat16", "int8"):
        optimizer = celo2.scale_by_celo2(BASE, orthogonalize=False, state_dtype=dtype)
        state: Any = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for grad in grads:
            steps[dtype], state = update(grad, state, params)
        sizes[dtype] = count_bytes((state.momentum, state.rms))
        assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(params))
    for name in params:
        exact, rounded = (np.asarray(steps[dtype][name]).ravel() for dtype in (None, "int8"))
        assert exact @ rounded > 0.999 * np.linalg.norm(exact) * np.linalg.norm(rounded)
    momenta = len(BASE.config.initial_momentum_decays)
    count = 64 * 96 + 96
    assert sizes["int8"] == momenta * (count + 4 * 65) + 2 * count  # a scale for each row and for the bias
    assert sizes["bfloat16"] == 2 * (momenta + 1) * count


def test_idle_matrices_keep_their_codes() -> None:
    optimizer = celo2.scale_by_celo2(BASE, orthogonalize=False, state_dtype="int8", skip_zero_gradients=True)
    params = {"kernel": jnp.asarray(np.random.default_rng(2).standard_normal((8, 4)), jnp.float32)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    _, state = update(params, state, params)
    _, idle = update(jax.tree.map(jnp.zeros_like, params), state, params)
    for old, new in zip(jax.tree.leaves(state[1:]), jax.tree.leaves(idle[1:]), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_codes_are_sharded_as_their_parameter(kind: AxisType) -> None:
    optimizer = celo2.scale_by_celo2(BASE, orthogonalize=False, state_dtype="int8")
    mesh = jax.make_mesh((2,), ("model",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("model", None))
        params = {"kernel": jax.device_put(jnp.ones((8, 4)), rows)}
        state: Any = optimizer.init(params)
        for _ in range(2):
            stored = state.momentum[0]["kernel"]
            assert stored.codes.sharding.is_equivalent_to(rows, 2)
            assert stored.scale.sharding.is_equivalent_to(rows, 2)
            _, state = jax.jit(optimizer.update)(params, state, params)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r'None \(float32\), "bfloat16" or "int8", got \'int4\''):
        celo2.scale_by_celo2(BASE, orthogonalize=False, state_dtype="int4")
