"""The `Task` interface: a training problem as pure functions over arrays in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
from jax import Array

Params = Any  # a tree of arrays
Batch = Any  # a tree of arrays with a common leading axis
Split = Literal["train", "valid"]
Size = Literal["tiny", "small", "full"]  # seconds on a CPU, minutes, as published; the structure is the same
SIZES: tuple[Size, ...] = get_args(Size)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: Name shown in results; stand-ins and samples have their own names.
        train: Arrays by name, with examples on the leading axis.
        valid: Held-out arrays with the same names.
        origin: One sentence on the source and licence of the arrays.
        stands_in_for: The published set that this one replaces or is a part of; otherwise "".
    """

    name: str
    train: Mapping[str, Any]
    valid: Mapping[str, Any]
    origin: str = ""
    stands_in_for: str = ""

    def size(self, split: Split) -> int:
        """Returns the number of examples in a split; 0 if the set has no arrays."""
        return len(next(iter(getattr(self, split).values()), ()))


class Stream(Protocol):
    """A source of batches other than a data set, such as the actions of an agent.

    All methods are pure. The step count is the same for all runs that are trained together, so
    `lax.cond` on it remains a conditional under `vmap`.
    """

    def init(self, params: Params, key: Array) -> Any:
        """Initializes the stream's state before the first step."""
        ...

    def next(self, state: Any, params: Params, key: Array, count: Array) -> tuple[Any, Batch]:
        """Returns the next state and the batch of step `count` (from 0)."""
        ...

    def validate(self, params: Params, key: Array) -> Array:
        """Measures the objective, `()`, on fresh data not used in training."""
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """A training problem.

    `loss` maps (params, batch) to the mean loss of the batch, a float32 scalar; `accuracy`, if
    defined, maps them to the accuracy in [0, 1]. All functions are pure: they can
    be jitted, and vmapped over parameters, batches and keys. A batch has the data set's array
    names and storage types (such as uint8 images); the functions convert them.

    Attributes:
        name: Name for the command line and the reports.
        dataset: The data set of the examples.
        init: `key → params`.
        loss: `(params, batch) → ()`.
        accuracy: `(params, batch) → ()`, or None.
        batch_size: Examples in a training batch.
        initial_loss: Approximate loss of an untrained network; a final loss above it counts as divergence.
        stochastic: Whether the loss draws random numbers (as dropout does); each batch then has a `key`, the
            data of a random key, uint32 `(2,)`.
        stream: Source of the batches, if not the data set.
        objective: `(loss, batch) → ()`: recorded and judged instead of the loss; lower is better.
        tokens_per_batch: Tokens in a training batch of a language model; None for other tasks.
        mean_over_examples: Whether a batch's loss and accuracy are means over its examples, so
            that they can be computed in parts (`celo2.tasks.micro_batches`).
        rows_at_once: Number of examples computed together; None: the whole batch.
        undivided: Loss and accuracy of a whole batch, where `loss` and `accuracy` are computed in parts.
    """

    name: str
    dataset: Dataset
    init: Callable[[Array], Params]
    loss: Callable[[Params, Batch], Array]
    batch_size: int
    initial_loss: float
    accuracy: Callable[[Params, Batch], Array] | None = None
    stochastic: bool = False
    stream: Stream | None = None
    objective: Callable[[Array, Batch], Array] | None = None
    tokens_per_batch: int | None = None
    mean_over_examples: bool = False
    rows_at_once: int | None = None
    undivided: tuple[Callable[[Params, Batch], Array], Callable[[Params, Batch], Array] | None] | None = None

    def sample_batch(self, key: Array, arrays: Mapping[str, Array]) -> Batch:
        """Draws `batch_size` examples with replacement from the arrays of one split."""
        count = len(next(iter(arrays.values())))
        index = jax.random.randint(key, (self.batch_size,), 0, count)
        batch = {name: jnp.take(array, index, axis=0) for name, array in arrays.items()}
        if self.stochastic:
            batch["key"] = jax.random.key_data(jax.random.fold_in(key, 1))
        return batch

    def init_stream(self, params: Params, key: Array) -> Any:
        """Initializes the state of `next_batch` before the first step; empty without a stream."""
        return () if self.stream is None else self.stream.init(params, key)

    def next_batch(
        self, state: Any, params: Params, key: Array, count: Array, arrays: Mapping[str, Array]
    ) -> tuple[Any, Batch]:
        """Returns the next state and the training batch of step `count`, from the stream or the arrays."""
        if self.stream is None:
            return state, self.sample_batch(key, arrays)
        return self.stream.next(state, params, key, count)

    def first_batch(self, params: Params, key: Array) -> Batch:
        """Makes the training batch of the first step, for timing and measurements."""
        init_key, batch_key = jax.random.split(key)
        state = self.init_stream(params, init_key)
        count = jnp.zeros((), jnp.int32)
        return self.next_batch(state, params, batch_key, count, dict(self.dataset.train))[1]

    def judge(self, loss: Array, batch: Batch) -> Array:
        """Returns the recorded value of a step: the objective, or the loss itself."""
        return loss if self.objective is None else self.objective(loss, batch)
