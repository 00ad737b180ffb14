"""A simplified network computes the same steps as the network it was made from, and has nothing idle."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.config import RuleConfig
from celo2.meta.search import mixture
from celo2.weights import load_checkpoint
from celo2.weights.simplify import collapse, simplify
from oracle import rule

Arrays = dict[str, np.ndarray]


def random_arrays(config: RuleConfig, seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(0, 0.5, shape) for name, shape in config.weight_shapes().items()}


def oracle_steps(arrays: Arrays, config: RuleConfig, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Three steps of the float64 oracle on random gradients of one seed."""
    generator = np.random.default_rng(0)
    options = rule.make_options(dataclasses.asdict(config))
    state, param, steps = rule.init(shape, options), generator.normal(size=shape), []
    for _ in range(3):
        step, state = rule.update(arrays, state, generator.normal(0, 0.1, shape), param, options)
        steps.append(step)
        param = param - 0.01 * step
    return steps


@pytest.mark.parametrize("shape", [(6, 5), (7,), ()])
@pytest.mark.parametrize("exp_mult", [0.0, 0.1])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_steps_agree_with_the_oracle_on_the_whole_network(
    shape: tuple[int, ...], exp_mult: float, activation: str, layers: int
) -> None:
    config = RuleConfig(exp_mult=exp_mult, mlp_activation=activation, ff_hidden_layers=layers)  # type: ignore[arg-type]
    arrays = random_arrays(config, seed=layers)
    for name in arrays:  # units 2 and 5 of the first layer are constants; unit 3 is never read
        if name.startswith("w0"):
            arrays[name][:, [2, 5]] = 0
    arrays["w1"][3] = 0
    arrays["w0__2"][:] = arrays["w0__9"][:] = arrays["w0__10"][:] = 0  # param; row and col
    smaller, options = simplify(arrays, config)
    assert (options.with_p, options.with_fac_rms, options.with_fac_rsqrt) == (False, False, True)
    assert options.ff_hidden_size == (5 if layers == 1 else 8)  # the second layer has all its units
    expected, found = oracle_steps(arrays, config, shape), oracle_steps(smaller, options, shape)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["celo2", "celo2-base"])
@pytest.mark.parametrize("shape", [(6, 5), (7,)])
def test_shipped_weights_agree_and_have_two_units(name: str, shape: tuple[int, ...]) -> None:
    weights = load_checkpoint(name)
    smaller, options = simplify(weights.arrays, weights.config)
    assert options.ff_hidden_size == 2
    assert [feature.name for _, feature in options.feature_groups(2)] == [
        "grad", "clipped_grad", "momentum", "normalized_momentum", "factored_grad", "normalized_grad",
        "factored_momentum",
    ]  # fmt: skip
    expected = oracle_steps(dict(weights.arrays), weights.config, shape)
    np.testing.assert_allclose(oracle_steps(smaller, options, shape), expected, rtol=1e-9, atol=1e-12)


def test_a_network_that_reads_everything_stays_as_it_is() -> None:
    config = RuleConfig()
    arrays = random_arrays(config, seed=0)
    smaller, options = simplify(arrays, config)
    assert options is config
    assert all(smaller[name] is arrays[name] for name in arrays)


def test_weights_that_are_not_known_yet_stay_as_they_are() -> None:
    config = RuleConfig()

    def run(arrays: Arrays) -> jax.Array:
        smaller, options = simplify(arrays, config)
        assert options is config
        return jnp.sum(smaller["b0"])

    jax.jit(run)({name: jnp.zeros(shape) for name, shape in config.weight_shapes().items()})


def test_a_network_of_zeros_keeps_one_unit_and_one_feature_of_vectors() -> None:
    config = RuleConfig()
    arrays = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    arrays["b2"][0] = 0.25
    smaller, options = simplify(arrays, config)
    assert options.ff_hidden_size == 1
    assert [feature.name for _, feature in options.feature_groups(0)] == ["grad"]
    np.testing.assert_allclose(oracle_steps(smaller, options, (3,)), oracle_steps(arrays, config, (3,)))


def test_constants_pass_through_both_layers() -> None:
    config = RuleConfig()
    arrays = random_arrays(config, seed=3)
    for name in arrays:
        if name.startswith("w0"):
            arrays[name][:] = 0
    arrays["w0__0"][0, 0] = 1.0  # the gradient reaches unit 0 alone
    arrays["w1"][0, 1:] = 0  # and through it unit 0 of the second layer alone
    smaller, options = simplify(arrays, config)
    assert options.ff_hidden_size == 1
    expected = oracle_steps(arrays, config, (6, 5))
    np.testing.assert_allclose(oracle_steps(smaller, options, (6, 5)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["celo2", "celo2-base"])
@pytest.mark.parametrize("shape", [(6, 5), (7,)])
def test_shipped_weights_are_linear(name: str, shape: tuple[int, ...]) -> None:
    weights = load_checkpoint(name)
    smaller, options = collapse(*simplify(weights.arrays, weights.config))
    assert (options.ff_hidden_layers, options.ff_hidden_size) == (0, 3)
    assert {array: smaller[array].shape for array in smaller} == options.weight_shapes()
    expected = oracle_steps(dict(weights.arrays), weights.config, shape)
    np.testing.assert_allclose(oracle_steps(smaller, options, shape), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("exp_mult", [0.0, 0.1])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_linear_first_layers_are_one_layer_with_the_next(layers: int, exp_mult: float) -> None:
    config = RuleConfig(ff_hidden_layers=layers, exp_mult=exp_mult)
    arrays = random_arrays(config, seed=layers)
    opposite = [7, 6, 5, 4, 3, 2, 1, 0]
    for name in [*(name for name, _ in config.feature_groups(2)), "b0"]:
        arrays[name][..., 4:] = -arrays[name][..., opposite][..., 4:]
    arrays["w1"][4:] = -arrays["w1"][opposite][4:]
    smaller, options = collapse(arrays, config)
    assert options.ff_hidden_layers == layers - 1
    expected, found = oracle_steps(arrays, config, (6, 5)), oracle_steps(smaller, options, (6, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("second", [0.0, 0.1], ids=["rows", "rows-and-columns"])
@pytest.mark.parametrize("shape", [(6, 5), (7,)])
def test_a_layer_without_negative_weights_is_merged_with_the_next(
    second: float, shape: tuple[int, ...]
) -> None:
    vector = np.asarray([*mixture.to_vector(), 0.1, second, -0.1, -1.1])
    weights = mixture.make_weights(vector, "celo2", {})
    smaller, options = collapse(*simplify(weights.arrays, weights.config))
    assert (options.ff_hidden_layers, options.ff_hidden_size) == (1, 4 if second else 3)
    assert {array: smaller[array].shape for array in smaller} == options.weight_shapes()
    expected = oracle_steps(dict(weights.arrays), weights.config, shape)
    np.testing.assert_allclose(oracle_steps(smaller, options, shape), expected, rtol=1e-9, atol=1e-12)


def test_a_first_layer_without_negative_weights_stays() -> None:
    config = RuleConfig(ff_hidden_layers=1)  # its inputs may be negative
    arrays = {name: np.abs(array) for name, array in random_arrays(config, seed=0).items()}
    assert collapse(arrays, config)[1] is config


def test_a_second_layer_with_a_negative_bias_stays() -> None:
    weights = mixture.make_weights(np.append(mixture.to_vector(), [-0.2, -0.25]), "celo2", {})  # bent
    assert collapse(*simplify(weights.arrays, weights.config))[1].ff_hidden_layers == 2


@pytest.mark.parametrize(
    ("change", "layers"), [("input", 1), ("bias", 1), ("output", 2), ("first-output", 2), ("activation", 2)]
)
def test_a_layer_that_is_not_linear_stays(change: str, layers: int) -> None:
    weights = load_checkpoint("celo2")
    arrays, config = simplify(weights.arrays, weights.config)
    if change == "activation":
        config = config.replace(mlp_activation="tanh")
    else:
        name, place = {
            "input": ("w0__0", (0, 0)),
            "bias": ("b0", (1,)),
            "output": ("w1", (1, 0)),
            "first-output": ("w1", (0, 0)),
        }[change]
        arrays[name] = arrays[name].copy()
        arrays[name][place] += np.float32(1e-6)
    smaller, options = collapse(arrays, config)
    assert options.ff_hidden_layers == layers
    expected, found = oracle_steps(arrays, config, (6, 5)), oracle_steps(smaller, options, (6, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["int32", "bfloat16"])
def test_sums_and_products_of_other_dtypes_are_not_rounded(dtype: str) -> None:
    config = RuleConfig(mlp_activation="tanh" if dtype == "int32" else "relu")
    if dtype == "int32":  # unit 0 is the constant tanh(1)
        arrays = {name: np.round(3 * array).astype(dtype) for name, array in random_arrays(config, 0).items()}
        for name in arrays:
            if name.startswith("w0"):
                arrays[name][:, 0] = 0
        arrays["b0"][0] = 1
    else:
        arrays = {name: array.astype(jnp.bfloat16) for name, array in load_checkpoint("celo2").arrays.items()}
    smaller, options = collapse(*simplify(arrays, config))
    assert options != config or dtype == "int32"
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    found = {name: array.astype(np.float64) for name, array in smaller.items()}
    expected = oracle_steps(exact, config, (6, 5))
    np.testing.assert_allclose(oracle_steps(found, options, (6, 5)), expected, rtol=1e-5, atol=1e-6)
