"""The table of optimizers: who is in it, and that each is what it says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.baselines import (
    OPTIMIZERS,
    describe_optimizers,
    find_optimizer,
    make_optimizer,
)
from celo2.training.protocol import SCHEDULES

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(__file__).resolve().parents[3]

LEARNED = ("celo2", "celo2-plus", "celo2-eigenbasis", "celo2-base")
PAPER_BASELINES = (  # the fifteen that the evaluation of learned optimizers compares with
    *("adam", "sgd", "sgdm", "adamw", "rmsprop", "fromage", "sm3", "lars", "lamb", "adabelief", "adafactor"),
    *("adagrad", "yogi", "radam", "nadamw"),
)
LATER = ("muon", "shampoo", "soap", "adamuon", "normuon", "schedule-free-adamw", "prodigy", "lion")
HAND_DESIGNED = sorted((*PAPER_BASELINES, *LATER))

ALIASES = {
    "adabelief": optax.adabelief,
    "adafactor": optax.adafactor,
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "lion": lambda rate: optax.lion(rate, weight_decay=0.0),
    "nadamw": lambda rate: optax.nadamw(rate, weight_decay=0.0),
    "radam": optax.radam,
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
    "sgdm": lambda rate: optax.sgd(rate, momentum=0.9),
    "sm3": optax.sm3,
    "yogi": optax.yogi,
}


def make_params() -> dict[str, Any]:
    """A hidden matrix, its bias and a head."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(0.5 * rng.standard_normal(shape), jnp.float32)

    return {"layer_0": {"kernel": normal(4, 3), "bias": normal(3)}, "head": {"kernel": normal(3, 2)}}


def bowl(params: Any) -> Any:
    return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def test_learned_optimizers_come_first_and_the_others_in_order():
    assert list(OPTIMIZERS) == [*LEARNED, *HAND_DESIGNED]


def test_every_entry_says_what_it_is():
    for name, spec in OPTIMIZERS.items():
        assert spec.name == name
        assert spec.reference
        assert spec.origin
        assert spec.learning_rate_range[0] < spec.learning_rate_range[1]


def test_help_has_one_aligned_line_for_each():
    lines = describe_optimizers().splitlines()
    assert [line.split()[0] for line in lines] == list(OPTIMIZERS)
    column = len("  schedule-free-adamw ")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert max(map(len, lines)) <= 130  # a description has one line


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("adm", "adam"), ("schedule-free", "schedule-free-adamw"), ("nor-muon", "normuon")],
)
def test_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        make_optimizer(name, 1e-3)


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_loss_falls_under_vmap_with_donated_buffers(name):
    """At the best of three rates; finite, in the parameters' dtype, with all of it compiled once."""
    spec, steps = find_optimizer(name), 60
    params = make_params()

    def make(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(spec.make(SCHEDULES[spec.schedule](rate, steps), 0.0))

    def train(params: Any, state: Any, rate: jax.Array) -> Any:
        def body(step: jax.Array, carry: Any) -> Any:
            params, state = carry
            updates, state = make(rate).update(jax.grad(bowl)(params), state, params, step=step)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, body, (params, state))

    rates = jnp.asarray(spec.learning_rates(3), jnp.float32)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)
    states = jax.jit(jax.vmap(lambda params, rate: make(rate).init(params)))(stacked, rates)
    trained, states = jax.jit(jax.vmap(train), donate_argnums=(0, 1))(stacked, states, rates)
    evaluated = jax.vmap(spec.eval_params)(states, trained) if spec.eval_params else trained
    losses = np.asarray(jax.vmap(bowl)(evaluated))
    assert jax.tree.map(lambda leaf: leaf.dtype, trained) == jax.tree.map(lambda leaf: leaf.dtype, params)
    assert np.isfinite(losses[0])
    assert np.nanmin(losses) < 0.5 * float(bowl(params))


@pytest.mark.parametrize("name", ALIASES)
def test_optimizer_from_optax_is_the_one_that_it_names(name):
    params = make_params()
    ours, theirs = make_optimizer(name, 0.01), ALIASES[name](0.01)
    states = ours.init(params), theirs.init(params)
    for _ in range(2):
        mine, state = ours.update(params, states[0], params)
        other, other_state = theirs.update(params, states[1], params)
        states = state, other_state
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", sorted({*HAND_DESIGNED} - {"fromage", "lamb", "lars", "prodigy"}))
def test_weight_decay_is_decoupled_and_multiplied_by_the_learning_rate(name):
    factor = 20.0 if name in ("muon", "adamuon", "normuon") else 1.0  # AdamW's rate on the head
    head = {"head": {"kernel": jnp.full((3, 2), 2.0)}}
    grads = {"head": {"kernel": jnp.full((3, 2), 0.1)}}
    plain, decayed = (make_optimizer(name, 0.01, weight_decay=decay) for decay in (0.0, 0.5))
    without: Any
    updates: Any
    without, _ = plain.update(grads, plain.init(head), head)
    updates, _ = decayed.update(grads, decayed.init(head), head)
    difference = updates["head"]["kernel"] - without["head"]["kernel"]
    np.testing.assert_allclose(difference, -0.01 * factor * 0.5 * 2.0, rtol=1e-4)


@pytest.mark.parametrize("name", ["fromage", "lamb", "lars", "prodigy"])
def test_weight_decay_of_the_others_shrinks_parameters(name):
    params = make_params()
    grads = jax.tree.map(lambda leaf: -jnp.roll(leaf, 1), params)
    plain, decayed = (make_optimizer(name, 0.01, weight_decay=decay) for decay in (0.0, 10.0))
    without, _ = plain.update(grads, plain.init(params), params)
    updates, _ = decayed.update(grads, decayed.init(params), params)
    outward: list[Any] = [optax.tree.vdot(tree, params) for tree in (updates, without)]
    assert outward[0] < outward[1]


def test_page_has_the_table_that_the_tool_prints():
    table = runpy.run_path(str(ROOT / "tools" / "baselines_table.py"))["make_table"]()
    assert table in (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
