"""What meta-training starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2 import scale_by_celo2
from celo2.meta import pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner.theta import init_theta
from celo2.weights.checkpoint import Weights, save_weights

CONFIG = MetaConfig(variant="celo2-base")


@pytest.fixture
def theta() -> pes.Theta:
    return init_theta(jax.random.key(0), CONFIG)


def _saved(theta: pes.Theta, path: Path, **options: str) -> MetaConfig:
    arrays = {name: np.asarray(array) for name, array in theta.items()}
    save_weights(path, Weights(arrays, CONFIG.rule.replace(**options)))
    return dataclasses.replace(CONFIG, start=str(path))


def _rms_one(array: np.ndarray) -> np.ndarray:
    return array / np.sqrt(np.mean(array**2) + 1e-9)


def test_random_start_has_the_rules_shapes(theta: pes.Theta) -> None:
    assert {name: array.shape for name, array in theta.items()} == CONFIG.rule.weight_shapes()
    assert all(not theta[name].any() for name in ("b0", "b1", "b2"))
    assert float(jnp.abs(theta["w0__3"]).max()) <= 2 / np.sqrt(30) + 1e-6


def test_adam_start_steps_like_adam_with_nesterov_momentum() -> None:
    theta = init_theta(jax.random.key(0), dataclasses.replace(CONFIG, start="adam"))
    params = {"kernel": jnp.ones((4, 5))}
    optimizer = scale_by_celo2(theta, orthogonalize=False)
    state = optimizer.init(params)
    momentum = rms = np.zeros((4, 5))
    updates: Any
    for grad in np.random.default_rng(0).standard_normal((6, 4, 5)):
        momentum, rms = 0.9 * momentum + 0.1 * grad, 0.95 * rms + 0.05 * grad**2
        updates, state = optimizer.update({"kernel": jnp.asarray(grad, jnp.float32)}, state, params)
        root = np.sqrt(rms + 1e-8)
        expected = _rms_one(_rms_one(momentum / root) + _rms_one(grad / root))
        np.testing.assert_allclose(updates["kernel"], expected, atol=2e-6)  # float32, steps of size 1


def test_adam_start_leaves_the_other_units_something_to_learn(theta: pes.Theta) -> None:
    started = init_theta(jax.random.key(0), dataclasses.replace(CONFIG, start="adam"))
    for name in ("w0__0", "w1"):
        np.testing.assert_array_equal(started[name][:, 2:], theta[name][:, 2:])


def test_start_weights_are_taken_as_they_are(tmp_path: Path, theta: pes.Theta) -> None:
    started = init_theta(jax.random.key(1), _saved(theta, tmp_path / "start.safetensors"))
    for name, array in theta.items():
        np.testing.assert_array_equal(started[name], array)


def test_start_weights_of_other_options_are_refused(tmp_path: Path, theta: pes.Theta) -> None:
    config = _saved(theta, tmp_path / "start.safetensors", mlp_activation="tanh")
    with pytest.raises(ValueError, match="other options"):
        init_theta(jax.random.key(1), config)
