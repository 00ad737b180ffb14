"""The reparametrisation augmentation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.tasks.augmentation import LEVELS, from_scaled, sample_scales, to_scaled

PARAMS = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3), "bias": jnp.array([0.5, -0.5, 2.0])}
RANGE = (1e-3, 1e3)


@pytest.mark.parametrize("level", LEVELS)
def test_scaled_network_starts_as_the_same_function(level: str) -> None:
    scales = sample_scales(jax.random.key(0), PARAMS, level, RANGE)
    used = from_scaled(to_scaled(PARAMS, scales), scales)
    for name, array in PARAMS.items():
        np.testing.assert_allclose(used[name], array, rtol=1e-6)  # one rounding each way


@pytest.mark.parametrize(("level", "distinct"), [("none", 1), ("global", 1), ("tensor", 2), ("parameter", 9)])
def test_level_says_how_many_scales_there_are(level: str, distinct: int) -> None:
    scales = sample_scales(jax.random.key(1), PARAMS, level, RANGE)
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(scales)])
    assert len(np.unique(values)) == distinct
    if level == "none":
        assert values.tolist() == [1.0] * len(values)


def test_scales_are_log_uniform() -> None:
    keys = jax.random.split(jax.random.key(2), 4000)
    drawn = jax.vmap(lambda key: sample_scales(key, PARAMS, "global", RANGE)["bias"])(keys)
    logs = np.log10(np.asarray(drawn))
    assert logs.min() >= -3.0001
    assert logs.max() <= 3.0001
    standard_error = 6 / np.sqrt(12 * len(logs))
    assert abs(logs.mean()) < 5 * standard_error
