"""What a task is: pure functions over arrays in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["Batch", "Dataset", "Params", "Split", "Task"]

Params = Any  # a tree of arrays
Batch = Any  # a tree of arrays with a common leading axis
Split = Literal["train", "valid"]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: What a result says it used; a stand-in or a sample has its own name.
        train: Arrays by name, the leading axis running over examples.
        valid: The same names, held out.
        origin: One sentence: where the arrays came from, and under which licence.
    """

    name: str
    train: Mapping[str, Any]
    valid: Mapping[str, Any]
    origin: str = ""

    def size(self, split: Split) -> int:
        """Number of examples of a split."""
        return len(next(iter(getattr(self, split).values())))


@dataclasses.dataclass(frozen=True)
class Task:
    """One training problem.

    `loss` maps (params, batch) to the mean loss of the batch, a float32 scalar; `accuracy`, where
    it means something, maps the same to the share of right answers in [0, 1]. All are pure: they can
    be jitted, and vmapped over parameters, batches and keys. A batch has the names of the data set's
    arrays, in the types of the memory (uint8 images, say): the functions convert.

    Attributes:
        name: For the command line and the reports.
        dataset: The examples.
        init: `key → params`.
        loss: `(params, batch) → ()`.
        accuracy: `(params, batch) → ()`, or None.
        batch_size: Examples in a training batch.
        initial_loss: About what an untrained network scores; a final loss above it is a divergence.
    """

    name: str
    dataset: Dataset
    init: Callable[[Array], Params]
    loss: Callable[[Params, Batch], Array]
    batch_size: int
    initial_loss: float
    accuracy: Callable[[Params, Batch], Array] | None = None

    def sample_batch(self, key: Array, arrays: Mapping[str, Array]) -> Batch:
        """Draws `batch_size` examples with replacement from the arrays of one split."""
        count = len(next(iter(arrays.values())))
        index = jax.random.randint(key, (self.batch_size,), 0, count)
        return {name: jnp.take(array, index, axis=0) for name, array in arrays.items()}
