"""The compiled program that trains many runs of one task and one optimizer.

A run is (learning rate, seed). Runs are spread over the devices of a mesh and vmapped on each; one
call takes all of them through a piece of the steps and validates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from celo2.baselines import EvalParams
from celo2.evaluate.protocol import NUM_EVALS, SCHEDULES, VALID_BATCHES, seed_keys
from celo2.jax.compilation import compiler_options
from celo2.tasks.base import Batch, Task

__all__ = ["MakeFromSchedule", "Program", "Record", "Runs", "TrainState", "make_step"]

RUNS, EVERYWHERE = PartitionSpec("runs"), PartitionSpec()
VALID_SEED = 0x5EED  # of the validation examples, the same in every run
STREAM_COUNT = 2**32 - 1  # in place of a step's number, in the key that starts a stream

MakeFromSchedule = Callable[..., optax.GradientTransformation]  # of the schedule and what is given with it
TrainState = Any  # (params, optimizer state)
Carry = tuple[TrainState, Any]  # with the state of the task's stream


class Runs(NamedTuple):
    """Runs: a peak learning rate and a seed each, `(R,)`."""

    learning_rate: ArrayLike
    seed: ArrayLike


class Record(NamedTuple):
    """What runs leave behind: the losses of their steps `(R, steps)`, their validations `(R, V)`."""

    train_loss: Any
    valid_loss: Any
    valid_accuracy: Any


def make_step(task: Task, optimizer: optax.GradientTransformation) -> Callable[..., tuple[TrainState, Array]]:
    """One training step: `((params, state), batch, count) → ((params, state), objective before the step)`.

    Optimizers that want the loss get it as Optax's extra argument `value`, and the number of steps taken
    as `step`, if it is given: the same for all runs of a vmap, it tells JAX that what an optimizer does
    every n-th step is due in all of them or in none.
    """
    extended = optax.with_extra_args_support(optimizer)

    def step(train_state: TrainState, batch: Batch, count: Array | None = None) -> tuple[TrainState, Array]:
        params, state = train_state
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        known = {} if count is None else {"step": count}
        updates, state = extended.update(grads, state, params, value=loss, **known)
        return (optax.apply_updates(params, updates), state), task.judge(loss, batch)

    return step


class Program:
    """The compiled program, and the task's data on the devices.

    Args:
        task: The problem.
        make_optimizer: `(schedule, *inputs) → Optax transform`; called under tracing.
        steps: Length of a run.
        devices: JAX devices to run on.
        inputs: Trees of arrays for `make_optimizer`; `train` takes others of the same shapes.
        num_evals: Validations of a run, the last one after its last step.
        schedule: Of the learning rate, by its name in `SCHEDULES`.
        eval_params: What is validated, as in `OptimizerSpec`; None: the trained parameters.
    """

    def __init__(
        self,
        task: Task,
        make_optimizer: MakeFromSchedule,
        steps: int,
        devices: Sequence[Any],
        inputs: Sequence[Any] = (),
        num_evals: int = NUM_EVALS,
        schedule: str = "cosine",
        eval_params: EvalParams | None = None,
    ) -> None:
        self.task = task
        self.make_optimizer = make_optimizer
        self.steps = steps
        self.inputs = tuple(inputs)
        self.make_schedule = SCHEDULES[schedule]
        self.eval_params = eval_params or (lambda _, params: params)
        self.piece = math.ceil(steps / num_evals)
        self.bounds = [(start, min(start + self.piece, steps)) for start in range(0, steps, self.piece)]
        self.mesh = Mesh(np.asarray(devices), ("runs",))
        self.data = jax.device_put(
            (dict(task.dataset.train), _valid_batches(task)), NamedSharding(self.mesh, EVERYWHERE)
        )

    def fit(self, num_runs: int, max_memory: float) -> int:
        """Compiles for as many runs at once as the memory holds; returns how many.

        What a number of runs takes is the compiler's own figure; it is halved until it fits. The
        result is a multiple of the devices, and never less than one run on each.
        """
        devices = self.mesh.size
        width = math.ceil(num_runs / devices) * devices
        while True:
            self._compile(width)
            if width == devices or self._bytes_needed() <= max_memory:
                return width
            width = math.ceil(width / 2 / devices) * devices

    def train(self, runs: Runs, inputs: Sequence[Any]) -> Iterator[tuple[int, Record]]:
        """Takes runs, as many as `fit` said, to the end; yields the steps taken and a piece's record."""
        placed = jax.device_put(_as_arrays(runs), NamedSharding(self.mesh, RUNS))
        given = jax.device_put(tuple(inputs), NamedSharding(self.mesh, EVERYWHERE))
        params = jax.device_put(self._params(runs), NamedSharding(self.mesh, RUNS))
        carry = self._init(params, placed, given)
        for start, stop in self.bounds:
            bounds = np.asarray([start, stop], np.int32)
            carry, record = self._advance(carry, placed, given, bounds, *self.data)
            record = jax.tree.map(np.asarray, record)
            yield stop, record._replace(train_loss=record.train_loss[:, : stop - start])

    def _compile(self, width: int) -> None:
        def shard(function: Callable[..., Any], *in_specs: PartitionSpec) -> Callable[..., Any]:
            return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=RUNS, check_vma=False)

        def shapes(tree: Any, spec: PartitionSpec) -> Any:
            sharding = NamedSharding(self.mesh, spec)
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

        def stacked(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((width, *x.shape), x.dtype)

        params = shapes(jax.tree.map(stacked, jax.eval_shape(self.task.init, jax.random.key(0))), RUNS)
        runs = shapes(_as_arrays(Runs(np.zeros(width), np.zeros(width))), RUNS)
        bounds, inputs = shapes((np.zeros(2, np.int32), self.inputs), EVERYWHERE)
        init_all = jax.vmap(self._init_one, in_axes=(0, 0, None))
        init = jax.jit(shard(init_all, RUNS, RUNS, EVERYWHERE), donate_argnums=0)
        advance_all = jax.vmap(self._advance_one, in_axes=(0, 0, None, None, None, None))
        advance = jax.jit(
            shard(advance_all, RUNS, RUNS, EVERYWHERE, EVERYWHERE, EVERYWHERE, EVERYWHERE), donate_argnums=0
        )
        carry = shapes(jax.eval_shape(init, params, runs, inputs), RUNS)
        data = shapes(self.data, EVERYWHERE)
        options = compiler_options(self.mesh.devices.flat[0].platform)
        self._init = init.lower(params, runs, inputs).compile(options)
        self._advance = advance.lower(carry, runs, inputs, bounds, *data).compile(options)

    def _bytes_needed(self) -> float:
        """What the compiled program takes on all devices; 0 where the backend does not say."""
        memory: Any = self._advance.memory_analysis()
        if memory is None:
            return 0.0
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return (needed - memory.alias_size_in_bytes) * self.mesh.size

    def _optimizer(self, run: Runs, inputs: Sequence[Any]) -> optax.GradientTransformation:
        return self.make_optimizer(self.make_schedule(run.learning_rate, self.steps), *inputs)

    def _params(self, runs: Runs) -> Any:
        """Initial parameters of each run, stacked; the same for the runs of one seed."""
        seeds, index = np.unique(np.asarray(runs.seed), return_inverse=True)
        params = [self.task.init(seed_keys(int(seed))[0]) for seed in seeds]
        return jax.tree.map(lambda *leaves: np.stack(leaves)[index], *params)

    def _init_one(self, params: Any, run: Runs, inputs: Sequence[Any]) -> Carry:
        stream = self.task.init_stream(params, jax.random.fold_in(seed_keys(run.seed)[1], STREAM_COUNT))
        return (params, self._optimizer(run, inputs).init(params)), stream

    def _advance_one(
        self,
        carry: Carry,
        run: Runs,
        inputs: Sequence[Any],
        bounds: Array,
        train: Any,
        valid: Batch,
    ) -> tuple[Carry, Record]:
        step = make_step(self.task, self._optimizer(run, inputs))
        _, loop_key = seed_keys(run.seed)
        start, stop = bounds

        def body(count: Array, state: tuple[Carry, Array]) -> tuple[Carry, Array]:
            (train_state, stream), losses = state
            key = jax.random.fold_in(loop_key, count)
            stream, batch = self.task.next_batch(stream, train_state[0], key, count, train)
            train_state, loss = step(train_state, batch, count)
            return (train_state, stream), losses.at[count - start].set(loss)

        losses = jnp.zeros(self.piece, jnp.float32)
        carry, losses = jax.lax.fori_loop(start, stop, body, (carry, losses))
        params, state = carry[0]
        return carry, Record(losses, *_validate(self.task, self.eval_params(state, params), valid))


def _validate(task: Task, params: Any, batches: Batch) -> tuple[Array, Array]:
    """Mean loss and accuracy (NaN where the task has none) over the validation batches, each `(1,)`."""
    nothing = jnp.asarray(jnp.nan, jnp.float32)
    if task.stream is not None:
        loss = task.stream.validate(params, jax.random.key(VALID_SEED))
        return loss[None], nothing[None]

    def measure(batch: Batch) -> tuple[Array, Array]:
        return task.loss(params, batch), task.accuracy(params, batch) if task.accuracy else nothing

    losses, accuracies = jax.lax.map(measure, batches)
    return losses.mean(keepdims=True), accuracies.mean(keepdims=True)


def _valid_batches(task: Task) -> Batch:
    """The batches that every validation uses, stacked; nothing where a stream validates."""
    if task.stream is not None:
        return {}
    keys = jax.random.split(jax.random.key(VALID_SEED), VALID_BATCHES)
    batches = [task.sample_batch(key, dict(task.dataset.valid)) for key in keys]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def _as_arrays(runs: Runs) -> Runs:
    return Runs(np.asarray(runs.learning_rate, np.float32), np.asarray(runs.seed, np.uint32))
