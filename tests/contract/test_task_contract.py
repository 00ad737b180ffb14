"""What every task of the suites promises, at its smallest size."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_array_equal

import celo2
from celo2.tasks.base import Task
from celo2.tasks.registry import TASKS, make_task
from celo2.training.optimizer_step import make_step

pytestmark = pytest.mark.usefixtures("standard_promotion")

STEPS = 100
RATE = 5e-3
OTHER_RATES = {"LOpt_AdafacMLPLOpt_FashionMnist_50": 3e-2}
SIZED = [name for name, spec in TASKS.items() if spec.sized]  # the others: tests/unit/tasks/test_tasks.py
NAMES = [f"{name}@tiny" for name in SIZED]
every_task = pytest.mark.parametrize("name", NAMES)


@functools.cache
def task_of(name: str) -> Task:
    return make_task(name)


def train(task: Task, seed: jax.Array) -> tuple[dict, jax.Array]:
    """The parameters after `STEPS` of AdamW, and the loss of each step."""
    optimizer = optax.adamw(OTHER_RATES.get(task.name, RATE), weight_decay=0.0)
    init_key, stream_key, loop_key = jax.random.split(jax.random.key(seed), 3)
    params = task.init(init_key)
    step = make_step(task, optimizer)

    def body(carry, count):
        train_state, stream = carry
        key = jax.random.fold_in(loop_key, count)
        stream, batch = task.next_batch(stream, train_state[0], key, count, task.dataset.train)
        train_state, loss = step(train_state, batch)
        return (train_state, stream), loss

    start = ((params, optimizer.init(params)), task.init_stream(params, stream_key))
    (train_state, _), losses = jax.lax.scan(body, start, jnp.arange(STEPS))
    return train_state[0], losses


@functools.cache
def trained(name: str) -> list[tuple[dict, np.ndarray]]:
    """Seed 0 twice, then seed 1."""
    run = jax.jit(functools.partial(train, task_of(name)))
    return [jax.tree.map(np.asarray, run(jnp.uint32(seed))) for seed in (0, 0, 1)]


@every_task
def test_loss_falls_under_adamw(name: str) -> None:
    _, losses = trained(name)[0]
    assert np.isfinite(losses).all()
    if task_of(name).stream is None:  # an agent's return needs more steps: it has a test of its own
        last = losses[-20:]
        error = last.std() / math.sqrt(len(last))  # of their mean, from batch to batch
        assert last.mean() + 3 * error < losses[:3].mean()


@every_task
def test_same_seed_gives_the_same_run_and_another_does_not(name: str) -> None:
    (params, losses), (again, same), (_, other) = trained(name)
    assert_array_equal(losses, same)
    jax.tree.map(assert_array_equal, params, again)
    if task_of(name).stream is None:
        assert not np.array_equal(losses, other)


@every_task
def test_params_and_losses_are_float32(name: str) -> None:
    params, losses = trained(name)[0]
    assert losses.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@every_task
def test_an_untrained_network_scores_as_stated(name: str) -> None:
    task = task_of(name)
    if math.isinf(task.initial_loss):
        return
    losses = [run[1][0] for run in trained(name)]
    assert np.mean(losses) == pytest.approx(task.initial_loss, rel=0.35)


@every_task
def test_a_task_says_what_it_trains_on(name: str) -> None:
    task = task_of(name)
    assert task.name == name.partition("@")[0]
    assert task.dataset.name
    assert task.dataset.origin
    assert set(task.dataset.train) == set(task.dataset.valid)


@every_task
def test_the_rule_gets_matrices_and_adamw_all_vectors(name: str) -> None:
    params = jax.eval_shape(task_of(name).init, jax.random.key(0))
    labels = jax.tree.leaves(celo2.param_labels(params))
    leaves = jax.tree.leaves(params)
    assert "celo2" in labels
    for leaf, label in zip(leaves, labels, strict=True):
        assert label == "adamw" or sum(size > 1 for size in leaf.shape) >= 2


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("name", SIZED)
def test_larger_sizes_have_the_leaves_of_the_tiny_one(name: str, size: str) -> None:
    def names(task: Task) -> set[str]:
        params = jax.eval_shape(task.init, jax.random.key(0))
        paths = jax.tree_util.tree_flatten_with_path(params)[0]
        return {str(path[-1]) for path, _ in paths}

    task = make_task(f"{name}@{size}")
    assert names(task) == names(task_of(f"{name}@tiny"))
    assert _count(task) >= _count(task_of(f"{name}@tiny"))


def _count(task: Task) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))
