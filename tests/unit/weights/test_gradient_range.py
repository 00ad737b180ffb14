"""The range of gradients that weights state, and its measurement on meta-training's own runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import celo2
from celo2.gradient_range import FIELD, format_range, gradient_range
from celo2.meta.config import MetaConfig
from celo2.meta.gradient_stats import measure_gradients
from celo2.meta.inner.theta import init_theta
from celo2.meta.inner.unroll import make_family
from celo2.weights.checkpoint import SHIPPED
from helpers.weights_examples import make_weights

CONFIG = MetaConfig(
    datasets=("digits",),
    tasks_per_set=2,
    truncation_length=4,
    min_unroll=4,
    max_unroll=10,
    batch_size=8,
    start="adam",
)


def with_field(text: str) -> celo2.Weights:
    return dataclasses.replace(make_weights(), provenance={FIELD: text})


def trained(**changes: object) -> celo2.Weights:
    config = dataclasses.replace(CONFIG, **changes)
    arrays = {name: np.asarray(array) for name, array in init_theta(jax.random.key(0), config).items()}
    return celo2.Weights(arrays, config.rule, provenance={"recipe": config.to_json()})


TRIED = [
    str(path)
    for path in sorted((Path(__file__).resolve().parents[3] / "recipes" / "tried").glob("*.safetensors"))
]


@pytest.mark.parametrize("name", [*SHIPPED, *TRIED], ids=lambda name: Path(name).stem)
def test_weights_of_ours_state_a_range_within_reason(name: str) -> None:
    weights = celo2.load_checkpoint(name)
    low, high = gradient_range(weights)
    spread = 10.0  # one scale has many gradients
    if "celo2 meta-train" in weights.provenance["command"]:  # and augmentation has many scales
        least, greatest = MetaConfig.from_json(weights.provenance["recipe"]).scale_range
        spread = (greatest / least) ** 0.89  # of the scales between the quantiles
    assert high / low > spread
    assert 1e-8 < low < high < 1e4


def test_a_range_survives_its_text() -> None:
    assert gradient_range(with_field(format_range(1.234e-5, 98.7))) == (1.2e-5, 99.0)


def test_weights_without_a_range_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="give low and high, or measure"):
        gradient_range(make_weights())


@pytest.mark.parametrize(
    "text", ["", "[]", "[1]", "[1, 2, 3]", '"1, 2"', "null", '["a", "b"]', "[" * 100_000]
)
def test_a_field_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="JSON list of two numbers, found"):
        gradient_range(with_field(text))


@pytest.mark.parametrize("text", ["[0, 1]", "[1, 1]", "[2, 1]", "[NaN, 1]", "[1, Infinity]"])
def test_numbers_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="0 < low < high"):
        gradient_range(with_field(text))


@pytest.fixture(scope="module")
def of_matrices(small_meta_rule) -> np.ndarray:
    """Gradients of Celo2's matrices at a rate so small that every network stays as it was drawn."""
    return measure_gradients(
        trained(variant="celo2", inner_learning_rate=1e-30, scale_range=(1.0, 1.0)), truncations=4
    )["mlp"]


@pytest.fixture(scope="module")
def of_all(small_meta_rule) -> np.ndarray:
    """The same for all arrays, with networks stored at a hundredth."""
    changes = {"variant": "celo2-base", "inner_learning_rate": 1e-30, "scale_range": (100.0, 100.0)}
    return measure_gradients(trained(**changes), truncations=4)["mlp"]


def test_the_arrays_that_the_rule_updates_are_measured(of_matrices: np.ndarray, of_all: np.ndarray) -> None:
    assert of_matrices.shape[1] == 2
    assert of_all.shape[1] == 4
    for found in (of_matrices, of_all):
        assert 0 < len(found) < 4 * 2 * CONFIG.num_pairs  # runs that have ended give nothing
        assert np.isfinite(found).all()
        assert (found > 0).all()


def test_gradients_are_those_of_the_stored_parameters(of_matrices: np.ndarray, of_all: np.ndarray) -> None:
    """Their scale multiplies the gradient."""
    matrices = [leaf.ndim == 2 for leaf in jax.tree.leaves(make_family(CONFIG).init(jax.random.key(0))[0])]
    np.testing.assert_allclose(of_all[:, matrices], 100.0 * of_matrices, rtol=1e-3)


def test_weights_without_a_recipe_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="by which recipe"):
        measure_gradients(make_weights())
