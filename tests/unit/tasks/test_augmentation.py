"""The reparametrisation augmentation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.meta.config import MetaConfig
from celo2.meta.inner.unroll import make_family
from celo2.tasks.families.augmentation import (
    LEVELS,
    Level,
    from_scaled,
    parse_mixture,
    sample_mixed_scales,
    sample_scales,
    to_scaled,
)

PARAMS = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3), "bias": jnp.array([0.5, -0.5, 2.0])}
RANGE = (1e-3, 1e3)


@pytest.mark.parametrize("level", LEVELS)
def test_scaled_network_starts_as_the_same_function(level: Level) -> None:
    scales = sample_scales(jax.random.key(0), PARAMS, level, RANGE)
    used = from_scaled(to_scaled(PARAMS, scales), scales)
    for name, array in PARAMS.items():
        np.testing.assert_allclose(used[name], array, rtol=1e-6)  # one rounding each way


@pytest.mark.parametrize(("level", "distinct"), [("none", 1), ("global", 1), ("tensor", 2), ("parameter", 9)])
def test_level_says_how_many_scales_there_are(level: Level, distinct: int) -> None:
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


MIXTURE = parse_mixture(["none", "none", "global:10:100", "tensor", "parameter:0.01:0.1"], (0.1, 1.0))


def test_each_task_draws_one_of_a_mixture() -> None:
    """Which one shows in its range, and in how many scales differ."""
    num_tasks = 2000
    keys = jax.random.split(jax.random.key(3), num_tasks)
    drawn = jax.jit(jax.vmap(lambda key: sample_mixed_scales(key, PARAMS, MIXTURE)))(keys)
    scales = np.concatenate(
        [np.asarray(leaf).reshape(num_tasks, -1) for leaf in jax.tree.leaves(drawn)], axis=1
    )
    assert scales.shape == (num_tasks, 9)
    kinds = {
        (1.0, 1.0, 1): 0.4,  # least and greatest scale of the law, distinct scales of a task → its share
        (10.0, 100.0, 1): 0.2,
        (0.1, 1.0, 2): 0.2,
        (0.01, 0.1, 9): 0.2,
    }
    distinct = np.array([len(np.unique(row)) for row in scales])
    seen = 0
    for (low, high, number), share in kinds.items():
        fits = (scales >= low * 0.9999).all(1) & (scales <= high * 1.0001).all(1) & (distinct == number)
        assert abs(fits.mean() - share) < 5 * np.sqrt(share * (1 - share) / num_tasks), (low, high, number)
        seen += fits.sum()
    assert seen == num_tasks


def test_mixture_without_the_parameter_level_draws_scalars() -> None:
    scales = sample_mixed_scales(jax.random.key(4), PARAMS, MIXTURE[:4])
    assert all(leaf.shape == () for leaf in jax.tree.leaves(scales))


def test_family_uses_its_mixture() -> None:
    family = make_family(MetaConfig(level="none", mixture=("global:10:100",)))
    _, scales = family.init(jax.random.key(5))
    assert all(10.0 <= float(scale) <= 100.0 for scale in jax.tree.leaves(scales))
