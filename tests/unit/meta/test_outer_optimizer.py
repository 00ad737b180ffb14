"""The outer optimizer by name: schedule, clipping, decay, refusals."""

from __future__ import annotations

from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.meta.config import DECAYING, MetaConfig, OuterOptimizer
from celo2.meta.outer import CUSTOM, OUTER_OPTIMIZERS, make_outer_optimizer
from celo2.meta.train import TrainOptions, meta_train

pytestmark = pytest.mark.usefixtures("standard_promotion")

PARAMS = {"w": jnp.array([0.5, -2.0])}
GRADS = {"w": jnp.array([3.0, 4.0])}


def _updates(num_steps: int = 1, **options: Any) -> list[np.ndarray]:
    optimizer = make_outer_optimizer(MetaConfig(**options))
    state = optimizer.init(PARAMS)
    found = []
    updates: Any
    for _ in range(num_steps):
        updates, state = optimizer.update(GRADS, state, PARAMS)
        found.append(np.asarray(updates["w"]))
    return found


def test_names_of_the_recipe_are_those_of_the_table() -> None:
    assert set(get_args(OuterOptimizer)) == {*OUTER_OPTIMIZERS, CUSTOM}


@pytest.mark.parametrize("name", OUTER_OPTIMIZERS)
def test_named_optimizer_is_that_of_optax(name: str) -> None:
    options = {"weight_decay": 0.0} if name in DECAYING else {}
    expected = getattr(optax, name)(0.01, **options)
    updates, _ = expected.update(GRADS, expected.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(_updates(outer_optimizer=name, outer_learning_rate=0.01)[0], updates["w"])


@pytest.mark.parametrize("name", DECAYING)
def test_decay_pulls_towards_zero_at_the_learning_rate(name: str) -> None:
    (without,) = _updates(outer_optimizer=name, outer_learning_rate=0.01)
    (decayed,) = _updates(outer_optimizer=name, outer_learning_rate=0.01, outer_weight_decay=0.1)
    np.testing.assert_allclose(decayed - without, -0.01 * 0.1 * PARAMS["w"], rtol=1e-4)


def test_clipping_comes_before_any_optimizer() -> None:
    (updates,) = _updates(outer_optimizer="sgd", outer_learning_rate=1.0, outer_clip=0.5)
    np.testing.assert_allclose(updates, [-0.3, -0.4], rtol=1e-6)


def test_rate_rises_and_falls_by_the_schedule_with_any_optimizer() -> None:
    schedule = {"outer_learning_rate": 1.0, "outer_warmup": 2, "outer_decay_steps": 6}
    found = np.array(_updates(8, outer_optimizer="sgd", **schedule))[:, 0] / -3.0
    fall = 0.1 + 0.9 * (0.5 + 0.5 * np.cos(np.pi * np.arange(5) / 4))
    np.testing.assert_allclose(found, [0.0, 0.5, *fall, 0.1], atol=1e-6)


@pytest.mark.parametrize(("name", "chain"), [(CUSTOM, None), ("adamw", optax.sgd(1.0))], ids=["none", "one"])
def test_chain_and_recipe_must_agree(name: str, chain: optax.GradientTransformation | None, tmp_path) -> None:
    config = MetaConfig(outer_optimizer=name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"meta_train\(config, options, outer_optimizer=chain\)"):
        meta_train(config, TrainOptions(out=tmp_path / "run", outer_steps=1), outer_optimizer=chain)
    assert not (tmp_path / "run").exists()
