"""Counting of dead units by `benchmarks/dead_units.py`."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from celo2.tasks.registry import make_task

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dead_units.py"
COUNTER = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_a_unit_that_is_always_off_is_counted() -> None:
    task = make_task("autoencoder", images="digits", widths=(6, 4, 6))
    data = jax.tree.map(jnp.asarray, dict(task.dataset.train))
    params = jax.tree.map(jnp.asarray, task.init(jax.random.key(0)))
    before = COUNTER.count_dead(task, params, data)
    params["layer_1"]["bias"] = params["layer_1"]["bias"].at[:2].set(-100.0)
    after = COUNTER.count_dead(task, params, data)
    assert "layer_1.kernel 2 of 4" in after
    assert before != after
