"""Moves along the gradients of `benchmarks/meta_gradient.py`."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from celo2.meta.inner.families import load_datasets, stack_data
from celo2.meta.inner.theta import init_theta
from celo2.weights.checkpoint import load_checkpoint

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "meta_gradient.py"
SIZE = 0.01  # of a move: for smaller ones the losses are rough, since ReLUs switch and roundings grow
BENCHMARK = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_a_small_move_changes_the_loss_by_what_the_gradient_predicts() -> None:
    """On the runs of the second call, which are those that `make_loss` measures for one call."""
    config = dataclasses.replace(
        BENCHMARK.make_recipe("adam", "mlp", 20),
        variant="celo2-base",
        rule_options=("ff_hidden_size=2", "initial_momentum_decays=[0.9]", "initial_adafactor_decays=[0.9]"),
    )
    theta, data = init_theta(jax.random.key(0), config), stack_data(load_datasets(config), config)
    # At the start itself, weights of units without an output have no first derivative.
    theta = {
        name: array + 0.05 * jax.random.normal(jax.random.key(1), array.shape)
        for name, array in theta.items()
    }
    gradients = BENCHMARK.differentiate(config, theta, data, 2)
    assert len(gradients) == 2 * BENCHMARK.AT_ONCE
    mean = gradients[BENCHMARK.AT_ONCE :].mean(axis=0)
    loss = BENCHMARK.make_loss(config, data, 1)
    step = SIZE * mean / np.linalg.norm(mean)
    one, two = (loss(BENCHMARK.move(theta, sign * step)).mean() for sign in (1.0, -1.0))
    assert (one - two) / 2 == pytest.approx(SIZE * np.linalg.norm(mean), rel=0.2)


def test_recipe_has_the_options_of_the_weights() -> None:
    weights = load_checkpoint("celo2")
    config = BENCHMARK.make_recipe("celo2", "transformer", 300)
    assert config.rule == weights.config
    assert config.variant == "celo2"
