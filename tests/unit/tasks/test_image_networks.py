"""The image networks: equal to float64 NumPy for any parameters, and initial values as published."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.flax_layers import (
    glorot_uniform,
    haiku_normal,
    lecun_normal,
    make_functions,
    normal,
)
from celo2.tasks.vision.networks import ConvNet, Perceptron
from celo2.tasks.vision.vit import VisionTransformer, sine_positions
from oracle import image_networks as oracle

PERCEPTRON = (Perceptron((5, 4), 3), lambda p, x: oracle.perceptron(p, x, lambda h: np.maximum(h, 0), False))
NETWORKS = {
    "perceptron": PERCEPTRON,
    "perceptron, tanh": (
        Perceptron((5, 4), 3, jnp.tanh),
        lambda p, x: oracle.perceptron(p, x, np.tanh, False),
    ),
    "perceptron, layer norm": (
        Perceptron((5, 4), 3, norm=True),
        lambda p, x: oracle.perceptron(p, x, lambda h: np.maximum(h, 0), True),
    ),
    "convolutions": (ConvNet((4, 5, 6), 3), lambda p, x: oracle.conv_net(p, x, "none")),
    "convolutions, batch norm": (
        ConvNet((4, 5, 6), 3, "batch"),
        lambda p, x: oracle.conv_net(p, x, "batch"),
    ),
    "convolutions, layer norm": (
        ConvNet((4, 5, 6), 3, "layer"),
        lambda p, x: oracle.conv_net(p, x, "layer"),
    ),
    "transformer, token": (
        VisionTransformer(3, patch=4, width=12, depth=2, num_heads=3),
        oracle.vision_transformer,
    ),
    "transformer, mean": (
        VisionTransformer(3, patch=4, width=12, depth=2, num_heads=3, pooling="mean"),
        oracle.vision_transformer,
    ),
}


@pytest.mark.parametrize(("network", "expected"), NETWORKS.values(), ids=list(NETWORKS))
def test_network_equals_its_description(network, expected) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((2, 8, 12, 3))  # not square: rows and columns must not be swapped
    init, compute = make_functions(network, images.shape[1:])
    # Every array random: none of those that start at zero or one may go unseen.
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape), jax.eval_shape(init, jax.random.key(0))
    )
    as_float32 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    found = jax.jit(compute)(as_float32, jnp.asarray(images, jnp.float32))
    assert found.dtype == jnp.float32
    assert_allclose(
        found, expected(params, images), rtol=1e-4, atol=1e-5
    )  # float32 sums of up to 300 products


def test_batch_norm_looks_at_the_whole_batch() -> None:
    init, compute = make_functions(ConvNet((4, 4, 4), 3, "batch"), (4, 4, 3))
    params = jax.jit(init)(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, 4, 4, 3))
    together, apart = jax.jit(lambda p, x: (compute(p, x)[:2], compute(p, x[:2])))(params, images)
    assert np.abs(together - apart).max() > 1e-3


# Initial values. Deviations within five standard errors.

SHAPE = (4, 5, 20, 300)  # 120,000 values, fan-in 400
DRAWS = {
    "haiku": (haiku_normal, SHAPE, 0.8796 / 20, 2 / 20),
    "lecun": (lecun_normal, SHAPE, 1 / 20, 2 / 0.8796 / 20),
    "glorot": (glorot_uniform, (300, 400), math.sqrt(2 / 700), math.sqrt(6 / 700)),
    "normal": (normal(0.02), (300, 400), 0.02, math.inf),
}


@pytest.mark.parametrize(("draw", "shape", "std", "bound"), DRAWS.values(), ids=list(DRAWS))
def test_initial_values_have_their_distribution(draw, shape, std: float, bound: float) -> None:
    values = np.asarray(draw(jax.random.key(0), shape), np.float64)
    assert values.shape == shape
    error = 5 * std / math.sqrt(values.size)
    assert_allclose(values.mean(), 0.0, atol=error)
    assert_allclose(values.std(), std, atol=error)  # of a normal 1/√2 of this, of the others less
    assert np.abs(values).max() <= bound * (1 + 1e-4)  # .8796 has four digits


def test_transformer_starts_as_published() -> None:
    init, _ = make_functions(VisionTransformer(10, patch=4, width=64, depth=1, num_heads=4), (16, 16, 3))
    params = jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(0)))
    block = params["block_0"]
    for name in ("query", "key", "value", "out"):
        kernel = block["attention"][name]["kernel"]  # as a matrix of width × width
        assert_allclose(np.abs(kernel).max(), math.sqrt(3 / 64), rtol=0.01)
        assert not block["attention"][name]["bias"].any()
    assert_allclose(np.abs(block["mlp"]["up"]["kernel"]).max(), math.sqrt(6 / (64 + 256)), rtol=0.01)
    assert_allclose(block["mlp"]["up"]["bias"].std(), 1e-6, rtol=0.3)
    assert_allclose(params["pos_embedding"].std(), 0.02, rtol=0.15)
    assert_allclose(params["embedding"]["kernel"].std(), 1 / math.sqrt(4 * 4 * 3), rtol=0.1)
    assert not params["cls"].any()
    assert not params["head"]["kernel"].any()


def test_fixed_positions_are_waves_of_the_column_then_of_the_row() -> None:
    positions = sine_positions(2, 3, 8)  # two frequencies: 1 and 1/10,000
    assert positions.shape == (6, 8)
    slow = 1e-4
    assert_allclose(
        positions[5],  # row 1, column 2
        [
            *(math.sin(2), math.sin(2 * slow), math.cos(2), math.cos(2 * slow)),
            *(math.sin(1), math.sin(slow), math.cos(1), math.cos(slow)),
        ],
        rtol=1e-6,
    )
    assert_array_equal(positions[0], [0, 0, 1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("width", [4, 10])
def test_fixed_positions_refuse_a_width(width: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4 and at least 8 .* got {width}"):
        sine_positions(2, 2, width)
