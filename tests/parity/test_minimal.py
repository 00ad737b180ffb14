"""`examples/celo2_minimal.py`, the rule in one file to be read, takes the steps of the package."""

from __future__ import annotations

import runpy
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import celo2
from helpers.tolerances import relative_error, tolerance

FILE = Path(__file__).resolve().parents[2] / "examples" / "celo2_minimal.py"
SHAPES = {
    "scale": (),
    "vector": (24,),
    "wide": (12, 20),
    "tall": (20, 12),
    "square": (16, 16),
    "stack": (3, 14, 10),
    "kernel": (9, 3, 6),  # factored over other axes than those it is orthogonalized over
}
SCALES = (1e-3, 1e-2, 1e-2, 1.0, 1e-2)  # of the gradients, one for each step
BY_BRANCH = {"wide": "celo2", "stack": "celo2", "tall": "adamw", "vector": "adamw"}
LR, DECAY = 1e-2, 0.1


@pytest.fixture(scope="module")
def minimal() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(FILE)))


@pytest.fixture
def loose() -> Any:
    """Promotion as in a user's program: the file is written as one would write it."""
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def make_tree(seed: int, scale: float, names: Iterable[str] = SHAPES) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(scale * rng.standard_normal(SHAPES[k]), jnp.float32) for k in names}


@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_the_rule_in_one_file_takes_the_steps_of_scale_by_celo2(minimal, loose, variant: str) -> None:
    base, params = variant == "celo2-base", make_tree(0, 0.3)
    tx = celo2.scale_by_celo2(orthogonalize=not base)
    rule, expected_state, update = minimal.read_rule(variant), tx.init(params), jax.jit(tx.update)
    states = {name: minimal.init_leaf(param) for name, param in params.items()}

    @jax.jit
    def step_all(grads: Any, states: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        pairs = {k: minimal.rule_step(rule, g, params[k], states[k], base=base) for k, g in grads.items()}
        return {k: step for k, (step, _) in pairs.items()}, {k: state for k, (_, state) in pairs.items()}

    reason = "minimal, jax" if base else "minimal, jax, orthogonalized"
    for count, scale in enumerate(SCALES):
        grads = make_tree(1 + count, scale)
        steps, states = step_all(grads, states)
        expected, expected_state = update(grads, expected_state, params)
        for name in SHAPES:
            assert relative_error(steps[name], expected[name]) < tolerance(reason), (name, count)


def test_the_optimizer_in_one_file_trains_as_celo2(minimal, loose) -> None:
    """AdamW's share at 20 times the rate, and decoupled weight decay, too."""
    as_stored = {".": None}
    tx = celo2.celo2(LR, weight_decay=DECAY, overrides=BY_BRANCH, dimension_numbers=as_stored)
    hidden = {name for name, branch in BY_BRANCH.items() if branch == "celo2"}
    start = params = expected = make_tree(0, 0.3, BY_BRANCH)
    state, expected_state, rule = minimal.init(params, hidden), tx.init(params), minimal.read_rule()
    step, update = jax.jit(lambda *a: minimal.update(rule, *a, hidden, LR, DECAY)), jax.jit(tx.update)
    for count, scale in enumerate(SCALES):
        grads = make_tree(1 + count, scale, BY_BRANCH)
        params, state = step(grads, state, params)
        updates, expected_state = update(grads, expected_state, expected)
        expected: Any = optax.apply_updates(expected, updates)
    for name in BY_BRANCH:
        changes = [np.asarray(end[name]) - np.asarray(start[name]) for end in (params, expected)]
        assert relative_error(*changes) < tolerance("minimal, jax, orthogonalized"), name


def test_the_file_trains_a_network(minimal, loose) -> None:
    losses = minimal.main(steps=15)
    assert losses[-1] < losses[0] / 2
