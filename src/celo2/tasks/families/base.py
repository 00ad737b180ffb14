"""Task families: distributions of tasks of one kind, where each task has its own parameter scales.

A family defines how its parameters are drawn, the source of its batches, and its loss. The
augmentation, which is the same for all families, and the data that they share are defined here. Every
family's loss has the same unit, so that meta-gradients can be summed over families: an untrained network
scores about `log(10)`, as in ten-class classification.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.tasks.base import Batch, Dataset, Params, Split
from celo2.tasks.families.augmentation import (
    Level,
    ScaleLaw,
    from_scaled,
    sample_mixed_scales,
    sample_scales,
    to_scaled,
)
from celo2.tasks.vision.classifier import LOSS_CLIP

UNTRAINED_LOSS = math.log(10)  # approximate loss of an untrained network of any family

Source = Literal["images", "text", "problem"]


class FamilyData(NamedTuple):
    """Several image sets, concatenated.

    Attributes:
        images: `(examples of all sets, 64)` uint8; a set is one split of a data set.
        labels: `(examples of all sets,)` int32.
        offsets: `(sets,)` int32, the first example of each set.
        sizes: `(sets,)` int32, the number of examples of each set.
    """

    images: Array
    labels: Array
    offsets: Array
    sizes: Array


class TextData(NamedTuple):
    """Several texts, concatenated.

    Attributes:
        text: `(bytes of all texts,)` uint8; a text is one split of a data set.
        offsets: `(texts,)` int32, the first byte of each.
        sizes: `(texts,)` int32, the number of bytes of each.
    """

    text: Array
    offsets: Array
    sizes: Array


class TaskData(NamedTuple):
    """The data of a run's families; None for sources that no family needs."""

    images: FamilyData | None = None
    text: TextData | None = None

    def of(self, source: Source) -> FamilyData | TextData | None:
        """Returns the data shared by families of this source."""
        return {"images": self.images, "text": self.text, "problem": None}[source]


def stack_datasets(datasets: Sequence[Dataset], *, splits: Sequence[Split] = ("train",)) -> FamilyData:
    """Concatenates sets (`image` of any shape, `label`): one split of all sets, then the next."""
    parts: list[Mapping[str, Any]] = [getattr(dataset, split) for split in splits for dataset in datasets]
    sizes = [len(part["label"]) for part in parts]
    return FamilyData(
        jnp.asarray(
            np.concatenate(
                [np.asarray(part["image"]).reshape(n, -1) for part, n in zip(parts, sizes, strict=True)]
            )
        ),
        jnp.asarray(np.concatenate([part["label"] for part in parts]), jnp.int32),
        *_places(sizes),
    )


def stack_texts(datasets: Sequence[Dataset], *, splits: Sequence[Split] = ("train",)) -> TextData:
    """Concatenates texts (`text` in rows of any length): one split of all texts, then the next."""
    parts = [np.ravel(getattr(dataset, split)["text"]) for split in splits for dataset in datasets]
    return TextData(jnp.asarray(np.concatenate(parts)), *_places([part.size for part in parts]))


def _places(sizes: Sequence[int]) -> tuple[Array, Array]:
    """Returns the offsets and sizes of concatenated parts."""
    return jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32), jnp.asarray(sizes, jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFamily(abc.ABC):
    """Base class of a family; all methods are pure and can be jitted and vmapped over keys and tasks.

    Attributes:
        batch_size: Examples in a batch; for text, bytes to predict.
        level: Granularity of the augmentation's scales (`augmentation.sample_scales`).
        scale_range: Minimum and maximum scale.
        mixture: Laws from which each task draws one, instead of `level` and `scale_range`; empty: none.
        source: Source of the batches: the "images" or the "text" that all tasks share, or a
            "problem" of its own for each task.
    """

    batch_size: int = 64
    level: Level = "global"
    scale_range: tuple[float, float] = (1e-3, 1e3)
    mixture: tuple[ScaleLaw, ...] = ()
    source: ClassVar[Source]

    @abc.abstractmethod
    def init_params(self, key: Array) -> Params:
        """Draws the untrained network's parameters, before scaling."""

    @abc.abstractmethod
    def make_batch(self, draw: Array, data: Any) -> Batch:
        """Makes the batch for a draw.

        Args:
            draw: From `sample_draw`.
            data: Data of the `source`: `FamilyData`, `TextData`, or the task's own, from `sample_problem`.
        """

    @abc.abstractmethod
    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Computes the mean loss of the batch, a float32 scalar, about `UNTRAINED_LOSS` before training."""

    def sample_problem(self, key: Array) -> Any:
        """Draws a task's own data as a tree of arrays; empty unless `source` is "problem"."""
        del key
        return ()

    def sample_draw(self, key: Array, data: Any, set_index: Array) -> Array:
        """Draws a batch's task-independent randomness, so that it can be drawn for many steps at once.

        Args:
            key: Random key.
            data: Data shared by all tasks; None if there is none.
            set_index: Index of the data set, `()` int32; problems have no sets.

        Returns:
            A small array: indices into the data, or the key itself if each task has its own problem.
        """
        del data, set_index
        return key

    def sample_batch(self, key: Array, data: Any, set_index: Array) -> Batch:
        """Draws a batch with replacement; arguments as in `sample_draw` and `make_batch`."""
        return self.make_batch(self.sample_draw(key, data, set_index), data)

    def sample_draws(self, keys: Array, data: Any, set_index: Array) -> Array:
        """Applies `sample_draw` to each of several tasks: keys `(tasks,)`, sets `(tasks,)`."""
        return jax.vmap(self.sample_draw, in_axes=(0, None, 0))(keys, data, set_index)

    def make_batches(self, draws: Array, data: Any, problems: Any) -> Batch:
        """Applies `make_batch` to each of several tasks.

        Args:
            draws: From `sample_draws`.
            data: Data shared by all tasks; None if there is none.
            problems: Otherwise each task's own data, with leading axis `tasks`.
        """
        if self.source == "problem":
            return jax.vmap(self.make_batch)(draws, problems)
        return jax.vmap(self.make_batch, in_axes=(0, None))(draws, data)

    @property
    def loss_ceiling(self) -> float:
        """The upper bound to which meta-losses are clipped."""
        return LOSS_CLIP * UNTRAINED_LOSS

    def init(self, key: Array) -> tuple[Params, Params]:
        """Draws one task: the stored parameters and their scales."""
        init_key, scale_key = jax.random.split(key)
        params = self.init_params(init_key)
        if self.mixture:
            scales = sample_mixed_scales(scale_key, params, self.mixture)
        else:
            scales = sample_scales(scale_key, params, self.level, self.scale_range)
        return to_scaled(params, scales), scales

    def loss(self, stored: Params, scales: Params, batch: Batch) -> Array:
        """Applies `compute_loss` to stored parameters."""
        return self.compute_loss(from_scaled(stored, scales), batch)
