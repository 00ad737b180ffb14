"""Training steps of many runs of one task with one optimizer, compiled and run together.

A run is a (learning rate, seed) pair. A step is two compiled programs: losses and gradients, which every
optimizer of the task shares (`task_step.py`), and the optimizer's update. Compiling one program for
both, once per optimizer, would take longer than training a small task.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from celo2.baselines import EvalParams
from celo2.tasks.base import Batch, Params, Task
from celo2.training.checkpoint import RunCheckpoint
from celo2.training.protocol import NUM_EVALS, SCHEDULES
from celo2.training.task_step import (
    EVERYWHERE,
    RUNS,
    Feed,
    PlacedTask,
    TaskProgram,
    bytes_needed,
)

AHEAD = 2  # steps that may be queued on the devices: each holds its gradients

MakeFromSchedule = Callable[..., optax.GradientTransformation]  # of the schedule and the inputs
TrainState = Any  # (params, optimizer state)


class Runs(NamedTuple):
    """Peak learning rates and seeds of R runs, `(R,)` each."""

    learning_rate: ArrayLike
    seed: ArrayLike


class Record(NamedTuple):
    """Results of R runs: the losses of their steps `(R, steps)`, their validations `(R, V)`."""

    train_loss: Any
    valid_loss: Any
    valid_accuracy: Any


class Piece(NamedTuple):
    """Results of a part of the steps: total steps taken, losses and validations, and seconds."""

    stop: int
    record: Record
    seconds: float


def make_step(task: Task, optimizer: optax.GradientTransformation) -> Callable[..., tuple[TrainState, Array]]:
    """Makes one training step: `((params, state), batch) → ((params, state), objective before the step)`."""
    update = _make_update(optimizer)

    def step(train_state: TrainState, batch: Batch) -> tuple[TrainState, Array]:
        loss, grads = jax.value_and_grad(task.loss)(train_state[0], batch)
        return update(train_state, grads, loss), task.judge(loss, batch)

    return step


def _make_update(optimizer: optax.GradientTransformation) -> Callable[..., TrainState]:
    """Makes the optimizer's part of a step: `((params, state), gradients, loss) → (params, state)`.

    Optimizers that accept them get the loss as Optax's extra argument `value` and the number of steps taken,
    if given, as `step`. Since it is the same for all runs of a vmap, JAX knows that an optimizer's periodic
    work is due in all of them or in none.
    """
    extended = optax.with_extra_args_support(optimizer)

    def update(train_state: TrainState, grads: Params, loss: Array, **known: Array) -> TrainState:
        params, state = train_state
        updates, state = extended.update(grads, state, params, value=loss, **known)
        return optax.apply_updates(params, updates), state

    return update


class Program:
    """The compiled programs of one optimizer.

    Args:
        placed: The task, its data and its own programs.
        make_optimizer: `(schedule, *inputs) → Optax transform`; called under tracing.
        steps: Length of a run.
        inputs: Trees of arrays for `make_optimizer`; `train` accepts others of the same shapes.
        num_evals: Validations of a run, the last one after its last step.
        schedule: Name of the learning-rate schedule in `SCHEDULES`.
        eval_params: The parameters to validate, as in `OptimizerSpec`; None: the trained parameters.
    """

    def __init__(
        self,
        placed: PlacedTask,
        make_optimizer: MakeFromSchedule,
        steps: int,
        inputs: Sequence[Any] = (),
        num_evals: int = NUM_EVALS,
        schedule: str = "cosine",
        eval_params: EvalParams | None = None,
    ) -> None:
        self.placed = placed
        self.make_optimizer = make_optimizer
        self.steps = steps
        self.inputs = tuple(inputs)
        self.make_schedule = SCHEDULES[schedule]
        self.eval_params = eval_params
        self.piece = math.ceil(steps / num_evals)
        self.bounds = [(start, min(start + self.piece, steps)) for start in range(0, steps, self.piece)]

    def fit(self, num_runs: int, max_memory: float) -> int:
        """Compiles for as many runs at once as fit into memory; returns their number.

        The number of runs is halved until they fit, by the compiler's memory estimate. The
        result is a multiple of the number of devices: at least one run on each.
        """
        devices = self.placed.mesh.size
        width = math.ceil(num_runs / devices) * devices
        while True:
            num_bytes = self._compile(width)
            if width == devices or num_bytes <= max_memory:
                return width
            width = math.ceil(width / 2 / devices) * devices

    def train(
        self, runs: Runs, inputs: Sequence[Any], checkpoint: RunCheckpoint | None = None
    ) -> Iterator[Piece]:
        """Trains as many runs as `fit` returned to the end, in pieces that each end with a validation.

        With a checkpoint, yields the pieces that it contains first, and then continues training.
        """
        mesh = self.placed.mesh
        spread = jax.device_put(_as_arrays(runs), NamedSharding(mesh, RUNS))
        given = jax.device_put(tuple(inputs), NamedSharding(mesh, EVERYWHERE))
        pieces, feed, train_state = self._start(runs, spread, given, checkpoint)
        yield from pieces
        count = jax.device_put(np.int32(pieces[-1].stop if pieces else 0), NamedSharding(mesh, EVERYWHERE))
        waiting: deque[Array] = deque()
        jax.block_until_ready((feed, train_state))
        for start, stop in self.bounds[len(pieces) :]:
            begin = time.perf_counter()
            for _ in range(start, stop):
                feed, loss, grads = self._task.differentiate(
                    feed, train_state[0], spread.seed, count, self.placed.train
                )
                train_state, count = self._update(train_state, grads, loss, spread, count, given)
                waiting.append(loss)
                if len(waiting) > AHEAD:
                    waiting.popleft().block_until_ready()
            count.block_until_ready()
            seconds = time.perf_counter() - begin
            judged = self._task.validate(self._evaluated(train_state), self.placed.valid)
            train_loss = np.asarray(feed.losses)[:, : stop - start]
            record = Record(train_loss, *(np.asarray(values)[:, None] for values in judged))
            pieces.append(Piece(stop, record, seconds))
            if checkpoint is not None and checkpoint.is_due():
                checkpoint.save(_join_history(pieces), (feed, train_state))
            yield pieces[-1]

    def _start(
        self, runs: Runs, spread: Runs, given: Sequence[Any], checkpoint: RunCheckpoint | None
    ) -> tuple[list[Piece], Feed, TrainState]:
        """Returns the pieces, feed and state to start from, from the checkpoint or newly made."""
        carry = self._task.feed, self._train_state
        if checkpoint is not None and (found := checkpoint.load(carry)) is not None:
            return _split_history(found[0], self.bounds), *found[1]
        params = self.placed.make_params(np.asarray(runs.seed).tolist())
        return [], self._task.start(params, spread.seed), (params, self._init(params, spread, given))

    def _compile(self, width: int) -> float:
        """Compiles for a number of runs; returns the bytes that they need on all devices together."""
        placed = self.placed
        params = placed.params_shapes(width)
        runs = placed.place_shapes(_as_arrays(Runs(np.zeros(width), np.zeros(width))), RUNS)
        loss = placed.place_shapes(np.zeros(width, np.float32), RUNS)
        count, inputs = placed.place_shapes((np.int32(0), self.inputs), EVERYWHERE)

        def init_one(params: Params, run: Runs, inputs: Sequence[Any]) -> Any:
            return self._optimizer(run, inputs).init(params)

        def update_one(
            train_state: TrainState, grads: Params, loss: Array, run: Runs, count: Array, inputs: Any
        ) -> TrainState:
            return _make_update(self._optimizer(run, inputs))(train_state, grads, loss, step=count)

        def update_all(
            train_state: TrainState, grads: Params, loss: Array, runs: Runs, count: Array, inputs: Any
        ) -> tuple[TrainState, Array]:
            update = jax.vmap(update_one, in_axes=(0, 0, 0, 0, None, None))
            return update(train_state, grads, loss, runs, count, inputs), count + 1

        init = jax.vmap(init_one, in_axes=(0, 0, None))
        train_state = params, placed.place_shapes(jax.eval_shape(init, params, runs, inputs), RUNS)
        self._train_state = train_state
        self._init = placed.compile(init, (params, runs, inputs), RUNS)
        self._update = placed.compile(
            update_all,
            (train_state, params, loss, runs, count, inputs),
            (RUNS, EVERYWHERE),
            donate_argnums=0,
        )
        self._evaluated: Callable[[TrainState], Params] = lambda train_state: train_state[0]
        if self.eval_params is not None:
            choose = self.eval_params
            evaluated = jax.vmap(lambda train_state: choose(train_state[1], train_state[0]))
            self._evaluated = placed.compile(evaluated, (train_state,), RUNS)
        self._task: TaskProgram = placed.program(width, self.piece)
        return self._task.num_bytes + bytes_needed(self._update) * placed.mesh.size

    def _optimizer(self, run: Runs, inputs: Sequence[Any]) -> optax.GradientTransformation:
        return self.make_optimizer(self.make_schedule(run.learning_rate, self.steps), *inputs)


def _join_history(pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    """Returns the results of pieces as arrays by name: the fields of `Record`, and each piece's seconds."""
    records = [piece.record for piece in pieces]
    history = {
        name: np.concatenate([getattr(record, name) for record in records], axis=1) for name in Record._fields
    }
    return {**history, "seconds": np.asarray([piece.seconds for piece in pieces])}


def _split_history(history: Mapping[str, np.ndarray], bounds: Sequence[tuple[int, int]]) -> list[Piece]:
    """Splits the result of `_join_history` into pieces again."""
    losses, *judged = (history[name] for name in Record._fields)
    return [
        Piece(
            stop,
            Record(losses[:, start:stop], *(values[:, at : at + 1] for values in judged)),
            float(history["seconds"][at]),
        )
        for at, (start, stop) in enumerate(bounds[: len(history["seconds"])])
    ]


def _as_arrays(runs: Runs) -> Runs:
    return Runs(np.asarray(runs.learning_rate, np.float32), np.asarray(runs.seed, np.uint32))
