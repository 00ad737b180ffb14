"""The runner: a vmapped, sharded grid is what training one run after the other gives."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.tasks.base import Dataset, Task
from celo2.training import optimizer_step
from celo2.training.grid import RunGrid
from celo2.training.optimizer_step import make_step
from celo2.training.protocol import NUM_EVALS, cosine_schedule, seed_keys, window_length
from celo2.training.runner import GridRunner, Progress, run_grid
from celo2.training.task_step import SharedTask

RATES = (0.01, 0.1, 0.3)
SEEDS = (0, 3)
STEPS = 23  # not a multiple of the number of validations: the last piece is shorter
CURVATURE = np.asarray([1.0, 0.5, 0.25], np.float32)


def make_bowl(noise: float = 0.0) -> Task:
    """`½ Σ c (x - target)²`: SGD on it has a closed form when every target is the same."""
    targets = 1.0 + noise * np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    arrays = {"target": np.float32(targets)}

    def loss(params, batch):
        squares = jnp.square(params["x"] - batch["target"].mean(0))
        return 0.5 * jnp.sum(jnp.asarray(CURVATURE) * squares)

    return Task(
        name="bowl",
        dataset=Dataset("bowl", arrays, arrays),
        init=lambda key: {"x": 3.0 + jax.random.normal(key, (3,))},
        loss=loss,
        batch_size=4,
        initial_loss=float(0.5 * CURVATURE.sum() * 5.0),
    )


def train_alone(task: Task, make_optimizer, rate: float, seed: int, steps: int) -> np.ndarray:
    optimizer = make_optimizer(cosine_schedule(jnp.float32(rate), steps))
    init_key, loop_key = seed_keys(seed)
    params = task.init(init_key)
    train_state, losses = (params, optimizer.init(params)), []
    arrays = {name: jnp.asarray(array) for name, array in task.dataset.train.items()}
    step = jax.jit(make_step(task, optimizer))
    for count in range(steps):
        batch = task.sample_batch(jax.random.fold_in(loop_key, count), arrays)
        train_state, loss = step(train_state, batch)
        losses.append(float(loss))
    return np.asarray(losses)


def test_run_grid_of_sgd_meets_the_closed_form():
    task = make_bowl()
    grid = run_grid(task, optax.sgd, RATES, seeds=(5,), steps=STEPS)
    distance = np.asarray(task.init(seed_keys(5)[0])["x"], np.float64) - 1.0
    for row, rate in enumerate(RATES):
        shape = cosine_schedule(1.0, STEPS)
        factors = np.stack(
            [1.0 - rate * float(np.asarray(shape(count))) * CURVATURE for count in range(STEPS - 1)]
        )
        shrinkage = np.concatenate([np.ones((1, 3)), np.cumprod(factors, axis=0)])
        expected = 0.5 * (CURVATURE * (distance * shrinkage) ** 2).sum(-1)
        # float32 products of 23 factors: 23 × 6e-8, squared, with room for the different order
        np.testing.assert_allclose(grid.train_loss[row, 0], expected, rtol=2e-5)


@pytest.fixture(scope="module")
def progress() -> list[Progress]:
    """What `grid` reported; filled by it."""
    return []


@pytest.fixture(scope="module")
def grid(progress: list[Progress]) -> RunGrid:
    task = make_bowl(noise=0.5)
    return run_grid(task, optax.sgd, RATES, seeds=SEEDS, steps=STEPS, on_progress=progress.append)


def test_run_grid_equals_runs_one_by_one(grid):
    assert grid.train_loss.shape == (len(RATES), len(SEEDS), STEPS)
    assert 0 < grid.seconds_per_step < 1
    for row, rate in enumerate(RATES):
        for column, seed in enumerate(SEEDS):
            alone = train_alone(make_bowl(noise=0.5), optax.sgd, rate, seed, STEPS)
            # the same operations, fused differently: a few float32 roundings a step
            np.testing.assert_allclose(grid.train_loss[row, column], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"max_memory": 1}, {"devices": 1}], ids=["chunks", "one-device"])
def test_run_grid_does_not_depend_on_chunks_or_devices(grid, options):
    other = run_grid(make_bowl(noise=0.5), optax.sgd, RATES, seeds=SEEDS, steps=STEPS, **options)
    np.testing.assert_allclose(other.train_loss, grid.train_loss, rtol=1e-5)
    np.testing.assert_allclose(other.valid_loss, grid.valid_loss, rtol=1e-5)


def test_run_grid_is_reproducible(grid):
    again = run_grid(make_bowl(noise=0.5), optax.sgd, RATES, seeds=SEEDS, steps=STEPS)
    np.testing.assert_array_equal(grid.train_loss, again.train_loss)
    np.testing.assert_array_equal(grid.valid_loss, again.valid_loss)


def test_run_grid_gives_every_optimizer_the_same_start(grid):
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam takes powers of a float with an int
        other = run_grid(make_bowl(noise=0.5), optax.adamw, (0.1,), seeds=SEEDS[1:], steps=STEPS)
    # the first loss is computed before any step: it shows the initial parameters and batch alone
    np.testing.assert_allclose(other.train_loss[0, 0, 0], grid.train_loss[:, 1, 0], rtol=1e-6)
    assert not np.allclose(grid.train_loss[:, 0, 0], grid.train_loss[:, 1, 0])


def test_run_grid_reports_progress_to_the_end(grid, progress):
    assert 0 < progress[0].done < 1
    assert progress[-1].done == 1.0
    assert progress[-1].step == STEPS
    assert [report.done for report in progress] == sorted(report.done for report in progress)
    last_piece = grid.train_loss[..., grid.valid_steps[-2] :].mean(-1)
    assert progress[-1].loss == pytest.approx(last_piece.min(), rel=1e-5)


def test_run_grid_validates_after_the_last_step_on_held_out_examples():
    task = make_bowl()
    shifted = {"target": task.dataset.train["target"] + np.float32(1.0)}
    task = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, valid=shifted))
    grid = run_grid(task, optax.sgd, (1.0,), steps=400)
    assert grid.valid_steps[-1] == 400
    assert grid.valid_accuracy is None
    # trained to the optimum at 1, judged at 2: the loss is half the summed curvature
    np.testing.assert_allclose(grid.final_valid_loss, 0.5 * CURVATURE.sum(), rtol=1e-3)


def test_run_grid_records_accuracy():
    def accuracy(params, batch):
        return jnp.mean(batch["target"]) / 4.0

    task = dataclasses.replace(make_bowl(), accuracy=accuracy)
    grid = run_grid(task, optax.sgd, (0.1,), seeds=(0, 1), steps=12)
    assert grid.valid_accuracy is not None
    np.testing.assert_allclose(grid.valid_accuracy, np.full((1, 2, grid.valid_steps.size), 0.25))


def test_run_grid_hands_the_loss_to_optimizers_that_want_it():
    def init(params):
        return jnp.zeros(())

    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda grad: -0.1 * grad / (1.0 + value), updates), value

    wants_loss = optax.GradientTransformationExtraArgs(init, cast(Any, update))
    grid = run_grid(make_bowl(), lambda _: wants_loss, (1.0,), steps=30)
    assert grid.train_loss[0, 0, -1] < grid.train_loss[0, 0, 0]


@pytest.mark.parametrize(
    ("rates", "options", "message"),
    [
        ((), {}, "one or more different positive"),
        ((-1.0,), {}, "one or more different positive"),
        ((float("nan"),), {}, "one or more different positive"),
        ((0.1,), {"seeds": ()}, "whole numbers in"),
        ((0.1,), {"seeds": (-1,)}, "whole numbers in"),
        ((0.1,), {"steps": 1}, "at least 2 steps"),
    ],
    ids=["no-rate", "negative-rate", "nan-rate", "no-seed", "negative-seed", "short"],
)
def test_run_grid_refuses(rates, options, message):
    with pytest.raises(ValueError, match=message):
        run_grid(make_bowl(), optax.sgd, rates, **options)


def test_diverged_runs_are_marked_and_their_curves_kept_to_that_point():
    grid = run_grid(make_bowl(), optax.sgd, (0.1, 1e8), seeds=(0, 1), steps=40)
    np.testing.assert_array_equal(grid.diverged, [[False, False], [True, True]])
    stopped = grid.diverged_at[1, 0]
    assert 0 < stopped < 40
    assert np.isfinite(grid.train_loss[1, 0, :stopped]).all()
    steps, curve = grid.curve(20)
    assert np.isfinite(curve[1, 0, steps <= stopped]).all()
    assert np.isnan(curve[1, 0, steps > stopped]).all()


def make_grid(final: list[list[float]], steps: int = 100) -> RunGrid:
    """Constant curves at these losses."""
    losses = np.asarray(final, np.float32)
    return RunGrid(
        learning_rates=np.geomspace(1e-3, 1e-1, len(final)),
        seeds=np.arange(losses.shape[1]),
        train_loss=np.repeat(losses[..., None], steps, -1),
        valid_steps=np.array([steps // 2, steps]),
        valid_loss=np.repeat(losses[..., None], 2, -1),
        valid_accuracy=None,
        initial_loss=2.0,
    )


@pytest.mark.parametrize(
    ("final", "diverged"),
    [(0.5, False), (2.0, False), (2.2, True), (np.nan, True), (np.inf, True)],
    ids=["low", "as untrained", "above untrained", "nan", "infinite"],
)
def test_a_run_that_ends_above_an_untrained_network_diverged(final, diverged):
    assert make_grid([[final]]).diverged.item() == diverged


@pytest.mark.parametrize(("final", "diverged"), [(-2.05, False), (-1.95, False), (-1.8, True)])
def test_a_negative_loss_diverges_upwards(final, diverged):
    grid = dataclasses.replace(make_grid([[final]]), initial_loss=-2.0)
    assert grid.diverged.item() == diverged


def test_final_loss_is_the_mean_over_the_last_window():
    steps = 100
    falling = np.concatenate([np.linspace(2, 1, 80), np.full(20, 1.5)]).astype(np.float32)
    grid = dataclasses.replace(make_grid([[1.0]]), train_loss=falling[None, None])
    assert window_length(steps) == 5
    np.testing.assert_allclose(grid.final_train_loss, [[1.5]])


def test_curve_is_the_mean_of_the_steps_before_each_point():
    counting = np.arange(40, dtype=np.float32)[None, None]
    grid = dataclasses.replace(make_grid([[1.0]]), train_loss=counting)
    steps, curve = grid.curve(3)
    np.testing.assert_array_equal(steps, [2, 21, 40])
    np.testing.assert_allclose(curve[0, 0], [0.5, 19.5, 38.5])
    assert grid.curve(100)[0].shape == (39,)


def test_runner_trains_with_other_inputs_as_if_it_had_been_compiled_with_them():
    def scaled_sgd(schedule, scale):
        return optax.chain(optax.scale(scale["of"]), optax.sgd(schedule))

    runner = GridRunner(
        SharedTask(make_bowl()), scaled_sgd, RATES, steps=STEPS, inputs=({"of": jnp.float32(1.0)},)
    )
    halved = runner.train(inputs=({"of": jnp.float32(0.5)},))
    expected = run_grid(make_bowl(), optax.sgd, [rate / 2 for rate in RATES], steps=STEPS)
    np.testing.assert_allclose(halved.train_loss, expected.train_loss, rtol=1e-5)
    whole = run_grid(make_bowl(), optax.sgd, RATES, steps=STEPS)
    np.testing.assert_allclose(runner.train().train_loss, whole.train_loss, rtol=1e-5)


def test_validates_what_eval_params_makes_of_state_and_params():
    def centre(state, params):
        return jax.tree.map(lambda trained: jnp.ones_like(trained) + 0.0 * state[0].trace["x"], params)

    grid = run_grid(make_bowl(), lambda rate: optax.sgd(rate, 0.9), RATES, steps=STEPS, eval_params=centre)
    np.testing.assert_array_equal(grid.valid_loss, 0.0)
    assert (grid.train_loss > 0.0).all()


def test_runs_follow_the_schedule_that_is_named():
    grid = run_grid(make_bowl(), optax.sgd, RATES, steps=STEPS, schedule="constant")
    for row, rate in enumerate(RATES):
        alone = train_alone(make_bowl(), lambda _, rate=rate: optax.sgd(rate), rate, 0, STEPS)
        np.testing.assert_allclose(grid.train_loss[row, 0], alone, rtol=1e-4)  # the warm-up is one step long


def test_what_is_due_every_few_steps_is_computed_then_only():
    calls = []

    def on_host(grad):
        calls.append(grad.shape)
        return grad

    def with_callback(schedule):
        def halve_sometimes(grad, step):
            def halve(grad):
                return 0.5 * jax.pure_callback(on_host, grad, grad, vmap_method="expand_dims")

            return jax.lax.cond(step % 2 == 0, halve, lambda grad: grad, grad)

        def update(updates, state, params=None, *, step, **_):
            return jax.tree.map(lambda grad: halve_sometimes(grad, step), updates), state

        halving = optax.GradientTransformationExtraArgs(optax.identity().init, cast(Any, update))
        return optax.chain(halving, optax.sgd(schedule))

    run_grid(make_bowl(), with_callback, RATES, steps=STEPS, devices=1)
    assert calls == [(len(RATES), 3)] * math.ceil(STEPS / 2)  # all runs at once


def test_number_of_validations_leaves_the_training_alone(grid):
    once = run_grid(make_bowl(noise=0.5), optax.sgd, RATES, seeds=SEEDS, steps=STEPS, num_evals=1)
    assert once.valid_steps.tolist() == [STEPS]
    np.testing.assert_allclose(once.train_loss, grid.train_loss, rtol=1e-5)
    np.testing.assert_allclose(once.final_valid_loss, grid.final_valid_loss, rtol=1e-5)


def test_runners_of_one_task_share_its_program_and_its_data():
    shared = SharedTask(make_bowl())
    devices = jax.local_devices()
    one = GridRunner(shared, optax.sgd, RATES, seeds=SEEDS, steps=STEPS)
    program = shared.place(devices).program(one.width, math.ceil(STEPS / NUM_EVALS))
    GridRunner(shared, optax.lion, RATES, seeds=SEEDS, steps=STEPS)
    assert shared.place(devices).program(one.width, math.ceil(STEPS / NUM_EVALS)) is program
    assert shared.place(devices) is shared.place(list(devices))


def test_times_of_steps_leave_validations_out(monkeypatch):
    clock = [0.0]  # only validations take time
    monkeypatch.setattr(optimizer_step, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def wait(value):
        clock[0] += 1.0
        return np.float32(0.0)

    def accuracy(params, batch):
        del batch
        return jax.pure_callback(wait, jnp.zeros(()), params["x"][0], vmap_method="sequential")

    task = dataclasses.replace(make_bowl(), accuracy=accuracy)
    grid = run_grid(task, optax.sgd, (0.1,), steps=STEPS, devices=1, num_evals=1)
    assert clock[0] > 0.0
    assert grid.seconds_per_step == 0.0
