"""The primitives of the tasks' networks, by hand and against the library's."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.nn import (
    TRUNCATED_STD,
    Initial,
    accuracy,
    conv,
    conv_template,
    cross_entropy,
    layer_norm,
    layer_norm_template,
    linear,
    linear_template,
    sample_params,
)


def test_sampled_params_have_their_means_and_scales() -> None:
    template = {
        "a": Initial((400, 300), mean=2.0, scale=0.5),
        "b": Initial((3,), mean=1.0),
        "c": Initial((), scale=1.0),
    }
    params = jax.tree.map(np.asarray, sample_params(jax.random.key(0), template))
    assert {name: array.shape for name, array in params.items()} == {"a": (400, 300), "b": (3,), "c": ()}
    assert np.abs(params["a"] - 2.0).max() <= 2 * 0.5  # truncated at two scales
    tolerance = 5 * 0.5 / math.sqrt(400 * 300)  # five standard errors; the tails are light
    assert_allclose(params["a"].mean(), 2.0, atol=tolerance)
    assert_allclose(params["a"].std(), 0.5 * TRUNCATED_STD, atol=tolerance)
    assert_array_equal(params["b"], np.ones(3))


def test_sampled_params_of_constants_alone() -> None:
    params = sample_params(jax.random.key(0), layer_norm_template(4))
    assert_array_equal(params["scale"], np.ones(4))
    assert_array_equal(params["bias"], np.zeros(4))


def test_linear_and_conv_start_at_one_over_the_root_of_their_inputs() -> None:
    assert linear_template(400, 300) == {"kernel": Initial((400, 300), scale=1 / 20), "bias": Initial((300,))}
    assert conv_template(4, 5) == {"kernel": Initial((3, 3, 4, 5), scale=1 / 6), "bias": Initial((5,))}


def test_linear_adds_its_bias_on_the_last_axis() -> None:
    params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([10.0, 20.0])}
    assert_array_equal(linear(params, jnp.ones((1, 2, 2))), [[[14.0, 26.0], [14.0, 26.0]]])


@pytest.mark.parametrize(("size", "stride"), [(7, 1), (7, 2), (14, 2), (7, 3)])
def test_conv_equals_the_convolution_of_the_library(size: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    kernel, inputs = rng.normal(size=(3, 3, 4, 5)), rng.normal(size=(2, size, size + 1, 4))
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.arange(5.0)}
    expected = jax.lax.conv_general_dilated(
        jnp.asarray(inputs, jnp.float32),
        params["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = jax.jit(conv, static_argnums=2)(params, jnp.asarray(inputs, jnp.float32), stride)
    assert_allclose(found, np.asarray(expected) + np.arange(5), atol=1e-4)  # float32 sums of 36 products


def test_layer_norm_by_hand() -> None:
    params = {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.0, 5.0])}
    assert_allclose(layer_norm(params, jnp.array([[1.0, 3.0]])), [[-1.0, 7.0]], atol=1e-4)  # the epsilon


def test_cross_entropy_and_accuracy_by_hand() -> None:
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    labels = jnp.array([0, 1], jnp.uint8)
    assert_allclose(cross_entropy(logits, labels), -(math.log(0.7) + math.log(0.25)) / 2, rtol=1e-6)
    assert_allclose(accuracy(logits, labels), 0.5)
