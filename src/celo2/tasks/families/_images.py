"""Families that draw batches from the image sets."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch
from celo2.tasks.family import FamilyData, TaskFamily

__all__ = ["NUM_PIXELS", "SIDE", "ImageFamily"]

SIDE = 8  # pixels
NUM_PIXELS = SIDE * SIDE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFamily(TaskFamily):
    """Tasks on the grey 8 × 8 image sets, ten classes each."""

    source = "images"

    def sample_draw(self, key: Array, data: FamilyData, set_index: Array) -> Array:
        """Images of one set: `(batch,)` int32."""
        index = jax.random.randint(key, (self.batch_size,), 0, data.sizes[set_index])
        return index + data.offsets[set_index]

    def make_batch(self, draw: Array, data: FamilyData) -> Batch:
        """`x` `(batch, 64)` in [0, 1], `y` `(batch,)`."""
        return {"x": data.images[draw].astype(jnp.float32) / 255.0, "y": data.labels[draw]}
