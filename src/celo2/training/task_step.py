"""The compiled loss and gradient of a task for many parallel runs, shared by all optimizers.

Runs are spread over the devices of a mesh and vmapped on each. One call draws the next batch of every run
and computes its loss and gradient; another validates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from celo2.jax.runtime import compiler_options
from celo2.tasks.base import Batch, Params, Task
from celo2.training.protocol import VALID_BATCHES, seed_keys

RUNS, EVERYWHERE = PartitionSpec("runs"), PartitionSpec()
VALID_SEED = 0x5EED  # of the validation examples, the same in every run
STREAM_COUNT = 2**32 - 1  # stands for the step number in the key that starts a stream


class Feed(NamedTuple):
    """Source of batches and sink of losses: states of streams, and losses of a piece `(R, piece)`."""

    stream: Any
    losses: Any


class TaskProgram(NamedTuple):
    """The programs of a task, compiled for R runs.

    Attributes:
        start: `(params, seeds) → feed` before the first step.
        differentiate: `(feed, params, seeds, count, train) → (feed, losses (R,), gradients)`; the input feed
            is donated, and the new one contains the objective of step `count`.
        validate: `(params, valid) → (losses (R,), accuracies (R,))`, NaN if the task has none.
        feed: Shapes and shardings of a feed.
        num_bytes: Bytes that `differentiate` or `validate`, whichever is larger, needs on all devices.
    """

    start: Callable[..., Feed]
    differentiate: Callable[..., tuple[Feed, Array, Params]]
    validate: Callable[..., tuple[Array, Array]]
    feed: Feed
    num_bytes: float


class SharedTask:
    """A task shared by several optimizers, with its placed data and compiled programs.

    Threads can share it; a thread that needs a program which another is compiling waits for it.

    Args:
        task: The problem.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._placed: dict[tuple[Any, ...], PlacedTask] = {}
        self._lock = threading.Lock()

    def place(self, devices: Sequence[Any]) -> PlacedTask:
        """Places the task on these JAX devices, once."""
        key = tuple(devices)
        with self._lock:
            if key not in self._placed:
                self._placed[key] = PlacedTask(self.task, key)
            return self._placed[key]


class PlacedTask:
    """A task on some devices: its data, placed once, and its programs, compiled once for each size.

    Args:
        task: The problem.
        devices: JAX devices that the runs are spread over.
    """

    def __init__(self, task: Task, devices: Sequence[Any]) -> None:
        self.task = task
        self.mesh = Mesh(np.asarray(devices), ("runs",))
        self.train, self.valid = jax.device_put(
            (dict(task.dataset.train), _valid_batches(task)), NamedSharding(self.mesh, EVERYWHERE)
        )
        self._init = jax.jit(task.init)
        self._programs: dict[tuple[int, int], TaskProgram] = {}
        self._lock = threading.Lock()

    def make_params(self, seeds: Sequence[int]) -> Params:
        """Makes the initial parameters of runs with these seeds on the devices, stacked `(R, ...)`."""
        distinct, index = np.unique(np.asarray(seeds), return_inverse=True)
        params = [self._init(seed_keys(int(seed))[0]) for seed in distinct]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves)[index], *params)
        return jax.device_put(stacked, NamedSharding(self.mesh, RUNS))

    def params_shapes(self, width: int) -> Params:
        """Returns the shapes of the stacked parameters of `width` runs."""
        shapes = jax.eval_shape(self.task.init, jax.random.key(0))
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((width, *x.shape), x.dtype), shapes)
        return self.place_shapes(stacked, RUNS)

    def place_shapes(self, tree: Any, spec: PartitionSpec) -> Any:
        """Returns the shapes of a tree with their sharding over the devices."""
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def compile(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], out_specs: Any, **options: Any
    ) -> Any:
        """Compiles a function of one device's runs for placed shapes; the options are those of `jax.jit`."""
        in_specs = jax.tree.map(lambda x: x.sharding.spec, arguments)
        sharded = jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        lowered = jax.jit(sharded, **options).lower(*arguments)
        return lowered.compile(compiler_options(self.mesh.devices.flat[0].platform))

    def program(self, width: int, piece: int) -> TaskProgram:
        """Returns the compiled program, compiling it on the first call.

        Args:
            width: Number of runs, a multiple of the number of devices.
            piece: Number of steps whose losses a feed holds.
        """
        with self._lock:
            if (width, piece) not in self._programs:
                self._programs[width, piece] = self._compile(width, piece)
            return self._programs[width, piece]

    def _compile(self, width: int, piece: int) -> TaskProgram:
        def start_one(params: Params, seed: Array) -> Feed:
            key = jax.random.fold_in(seed_keys(seed)[1], STREAM_COUNT)
            return Feed(self.task.init_stream(params, key), jnp.zeros(piece, jnp.float32))

        def differentiate_one(
            feed: Feed, params: Params, seed: Array, count: Array, train: Any
        ) -> tuple[Feed, Array, Params]:
            key = jax.random.fold_in(seed_keys(seed)[1], count)
            stream, batch = self.task.next_batch(feed.stream, params, key, count, train)
            loss, grads = jax.value_and_grad(self.task.loss)(params, batch)
            losses = feed.losses.at[count % piece].set(self.task.judge(loss, batch))
            return Feed(stream, losses), loss, grads

        start = jax.vmap(start_one)
        differentiate = jax.vmap(differentiate_one, in_axes=(0, 0, 0, None, None))
        validate = jax.vmap(lambda params, valid: _validate(self.task, params, valid), in_axes=(0, None))
        params = self.params_shapes(width)
        seeds = self.place_shapes(np.zeros(width, np.uint32), RUNS)
        count, train, valid = self.place_shapes((np.int32(0), self.train, self.valid), EVERYWHERE)
        feed = self.place_shapes(jax.eval_shape(start, params, seeds), RUNS)
        stepping = self.compile(differentiate, (feed, params, seeds, count, train), RUNS, donate_argnums=0)
        validating = self.compile(validate, (params, valid), RUNS)
        return TaskProgram(
            start=self.compile(start, (params, seeds), RUNS),
            differentiate=stepping,
            validate=validating,
            feed=feed,
            num_bytes=max(map(bytes_needed, (stepping, validating))) * self.mesh.size,
        )


def bytes_needed(compiled: Any) -> float:
    """Returns the bytes that a compiled program needs on one device; 0 if the backend does not say."""
    memory: Any = compiled.memory_analysis()
    if memory is None:
        return 0.0
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return needed - memory.alias_size_in_bytes


def _validate(task: Task, params: Params, batches: Batch) -> tuple[Array, Array]:
    """Computes the mean loss and accuracy (NaN without one) over the validation batches, each `()`."""
    nothing = jnp.asarray(jnp.nan, jnp.float32)
    if task.stream is not None:
        return task.stream.validate(params, jax.random.key(VALID_SEED)), nothing

    def measure(batch: Batch) -> tuple[Array, Array]:
        return task.loss(params, batch), task.accuracy(params, batch) if task.accuracy else nothing

    losses, accuracies = jax.lax.map(measure, batches)
    return losses.mean(), accuracies.mean()


def _valid_batches(task: Task) -> Batch:
    """Samples the batches of every validation, stacked; empty if a stream does the validation."""
    if task.stream is not None:
        return {}
    keys = jax.random.split(jax.random.key(VALID_SEED), VALID_BATCHES)
    batches = [task.sample_batch(key, dict(task.dataset.valid)) for key in keys]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
