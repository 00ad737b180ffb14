"""The runner with a task whose batches come from a stream: each run has its own, whoever else is trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.base import Dataset, Task
from celo2.training.grid import RunGrid
from celo2.training.optimizer_step import make_step
from celo2.training.protocol import cosine_schedule, seed_keys
from celo2.training.runner import run_grid
from celo2.training.task_step import STREAM_COUNT

RATES, SEEDS = (0.05, 0.2), (0, 3)
STEPS, EVERY = 14, 4


class Stream:
    """Draws a target near the parameters every few steps; what it drew is its state."""

    def init(self, params, key):
        return {"target": params["x"], "drawn": jnp.zeros((), jnp.int32), "origin": jax.random.normal(key)}

    def next(self, state, params, key, count):
        def draw(state):
            near = 0.5 * params["x"] + state["origin"] + 0.1 * jax.random.normal(key, (3,))
            return state | {"target": near, "drawn": state["drawn"] + 1}

        state = jax.lax.cond(count % EVERY == 0, draw, lambda state: state, state)
        return state, {"target": state["target"], "drawn": state["drawn"]}

    def validate(self, params, key):
        del key
        return jnp.sum(jnp.abs(params["x"]))


TASK = Task(
    name="follow",
    dataset=Dataset("none", {}, {}),
    init=lambda key: {"x": jax.random.normal(key, (3,))},
    loss=lambda params, batch: jnp.sum(jnp.square(params["x"] - batch["target"])),
    batch_size=1,
    initial_loss=float("inf"),
    stream=Stream(),
    objective=lambda loss, batch: loss + 100.0 * batch["drawn"].astype(jnp.float32),
)


@pytest.fixture(scope="module")
def grid() -> RunGrid:
    return run_grid(TASK, optax.sgd, RATES, seeds=SEEDS, steps=STEPS, num_evals=3)


def train_alone(rate: float, seed: int) -> tuple[np.ndarray, float]:
    """The objectives of a run, and its last validation."""
    optimizer = optax.sgd(cosine_schedule(jnp.float32(rate), STEPS))
    init_key, loop_key = seed_keys(seed)
    params = TASK.init(init_key)
    stream = TASK.init_stream(params, jax.random.fold_in(loop_key, STREAM_COUNT))
    train_state, objectives = (params, optimizer.init(params)), []
    step = jax.jit(make_step(TASK, optimizer))
    draw = jax.jit(TASK.next_batch)
    for count in range(STEPS):
        key = jax.random.fold_in(loop_key, count)
        stream, batch = draw(stream, train_state[0], key, jnp.int32(count), {})
        train_state, objective = step(train_state, batch)
        objectives.append(float(objective))
    return np.asarray(objectives), float(np.abs(np.asarray(train_state[0]["x"])).sum())


def test_runs_of_a_stream_are_those_trained_alone(grid: RunGrid) -> None:
    assert grid.train_loss.shape == (len(RATES), len(SEEDS), STEPS)
    for row, rate in enumerate(RATES):
        for column, seed in enumerate(SEEDS):
            objectives, valid = train_alone(rate, seed)
            # the same operations, fused differently
            assert_allclose(grid.train_loss[row, column], objectives, rtol=1e-5)
            assert_allclose(grid.final_valid_loss[row, column], valid, rtol=1e-5)


@pytest.mark.parametrize("options", [{"max_memory": 1}, {"devices": 1}], ids=["chunks", "one-device"])
def test_runs_of_a_stream_do_not_depend_on_who_else_is_trained(grid: RunGrid, options: dict) -> None:
    other = run_grid(TASK, optax.sgd, RATES, seeds=SEEDS, steps=STEPS, num_evals=3, **options)
    assert_allclose(other.train_loss, grid.train_loss, rtol=1e-5)
    assert_allclose(other.valid_loss, grid.valid_loss, rtol=1e-5)


def test_objective_is_recorded_and_the_stream_goes_on_across_validations(grid: RunGrid) -> None:
    drawn = grid.train_loss // 100.0
    assert_array_equal(drawn, np.broadcast_to(np.arange(STEPS) // EVERY + 1, drawn.shape))
    assert grid.valid_steps.tolist() == [5, 10, 14]
    assert grid.valid_loss.shape == (len(RATES), len(SEEDS), 3)
    assert grid.valid_accuracy is None
    assert not grid.diverged.any()  # what an untrained network scores has no bound here
