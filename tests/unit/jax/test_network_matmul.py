"""The network by products of matrices, against the sums of the plain program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.config import RuleConfig
from celo2.jax import accumulators, dispatch, step
from celo2.jax.dimensions import make_axes
from helpers.quick import SMALL_RULE

BASE = RuleConfig(orthogonalize=False, **SMALL_RULE)
EXACT = 1.3e-15  # in float64: sums in another order, relative to the largest number (4.1e-16)

CASES: dict[str, tuple[tuple[int, ...], RuleConfig]] = {
    "matrix": ((6, 5), BASE),
    "stack": ((2, 3, 4), BASE),
    "vector": ((7,), BASE),
    "scalar": ((), BASE),
    "magnitude": ((6, 5), BASE.replace(exp_mult=0.1)),
    "deep tanh": ((6, 5), BASE.replace(ff_hidden_layers=3, mlp_activation="tanh")),
    "linear": ((6, 5), BASE.replace(ff_hidden_layers=0, ff_hidden_size=3)),
    "raw inputs": ((6, 5), BASE.replace(normalize_input=False)),
}


@pytest.mark.parametrize(("shape", "config"), CASES.values(), ids=CASES.keys())
def test_products_equal_the_plain_program(shape: tuple[int, ...], config: RuleConfig) -> None:
    with jax.enable_x64(True):
        plain, products = (_update(name, shape, config) for name in ("plain", "matmul"))
    assert np.abs(plain).max() > 0.1
    assert np.abs(products - plain).max() <= EXACT * np.abs(plain).max()


def _update(name: Any, shape: tuple[int, ...], config: RuleConfig) -> np.ndarray:
    rng = np.random.default_rng(0)
    weights = {name: jnp.asarray(0.3 * rng.normal(size=s)) for name, s in config.weight_shapes().items()}
    grad, param = (jnp.asarray(rng.normal(size=shape)) for _ in range(2))
    axes = make_axes(shape)
    state = accumulators.init(shape, axes, config, jnp.dtype("float64"))
    with dispatch.use(name):
        found, _ = step.update(weights, grad, param, state, jnp.int32(1), axes=axes, config=config)
    return np.asarray(found)
