"""A distribution of tasks for meta-training: one small network on several image sets.

Source: the four-task recipe of VeLO (arXiv 2211.09760) and Celo2 (arXiv 2602.19142, section 4): an
MLP 64-32-10 on 8×8 grey images in [0, 1], batches of 64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.tasks.augmentation import (
    Level,
    ScaleLaw,
    from_scaled,
    sample_mixed_scales,
    sample_scales,
    to_scaled,
)
from celo2.tasks.base import Batch, Dataset, Params, Split
from celo2.tasks.layers import cross_entropy
from celo2.tasks.mlp import compute_mlp, init_mlp

__all__ = ["FamilyData", "ImageMLPFamily", "stack_datasets"]

LOSS_CLIP = 1.5  # times log(classes): the ceiling of the meta-loss


class FamilyData(NamedTuple):
    """Several image sets, one after the other.

    Attributes:
        images: `(examples of all sets, 64)` uint8; a set is one split of a data set.
        labels: `(examples of all sets,)` int32.
        offsets: `(sets,)` int32, where each set begins.
        sizes: `(sets,)` int32.
    """

    images: Array
    labels: Array
    offsets: Array
    sizes: Array


def stack_datasets(datasets: Sequence[Dataset], *, splits: Sequence[Split] = ("train",)) -> FamilyData:
    """Puts sets (`image` of any shape, `label`) one after the other: all of one split, then the next."""
    parts: list[Mapping[str, Any]] = [getattr(dataset, split) for split in splits for dataset in datasets]
    sizes = [len(part["label"]) for part in parts]
    return FamilyData(
        jnp.asarray(
            np.concatenate(
                [np.asarray(part["image"]).reshape(n, -1) for part, n in zip(parts, sizes, strict=True)]
            )
        ),
        jnp.asarray(np.concatenate([part["label"] for part in parts]), jnp.int32),
        jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32),
        jnp.asarray(sizes, jnp.int32),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMLPFamily:
    """MLPs on image sets, each run in its own units.

    Attributes:
        widths: Layer sizes, input and classes included.
        batch_size: Images in a batch.
        level: What the augmentation scales (`augmentation.sample_scales`).
        scale_range: Least and greatest scale.
        mixture: Laws from which each task draws one, in place of `level` and `scale_range`, if there are any.
    """

    widths: tuple[int, ...] = (64, 32, 10)
    batch_size: int = 64
    level: Level = "global"
    scale_range: tuple[float, float] = (1e-3, 1e3)
    mixture: tuple[ScaleLaw, ...] = ()

    @property
    def loss_ceiling(self) -> float:
        """What a meta-loss is clipped to: 1.5 log(classes)."""
        return LOSS_CLIP * math.log(self.widths[-1])

    def init(self, key: Array) -> tuple[Params, Params]:
        """One task: the stored parameters and their scales."""
        init_key, scale_key = jax.random.split(key)
        params = init_mlp(init_key, self.widths)
        if self.mixture:
            scales = sample_mixed_scales(scale_key, params, self.mixture)
        else:
            scales = sample_scales(scale_key, params, self.level, self.scale_range)
        return to_scaled(params, scales), scales

    def sample_batch(self, key: Array, data: FamilyData, set_index: Array) -> Batch:
        """A batch of one set, with replacement: `x` `(batch, pixels)` in [0, 1], `y` `(batch,)`."""
        index = (
            jax.random.randint(key, (self.batch_size,), 0, data.sizes[set_index]) + data.offsets[set_index]
        )
        return {"x": data.images[index].astype(jnp.float32) / 255.0, "y": data.labels[index]}

    def loss(self, stored: Params, scales: Params, batch: Mapping[str, Array]) -> Array:
        """Mean cross-entropy of the batch, in nats."""
        logits = compute_mlp(from_scaled(stored, scales), batch["x"])
        return cross_entropy(logits, batch["y"])
