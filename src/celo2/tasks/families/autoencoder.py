"""Autoencoders of images: a loss that is not a cross-entropy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Params
from celo2.tasks.families._images import NUM_PIXELS, ImageFamily
from celo2.tasks.family import UNTRAINED_LOSS
from celo2.tasks.mlp import compute_mlp, init_mlp

__all__ = ["AutoencoderFamily"]

_LEAST_CONTRAST = 1e-3  # mean square of a batch's pixels around mid-grey; image sets have 0.02 to 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderFamily(ImageFamily):
    """Perceptrons 64-16-8-16-64 with a sigmoid that reproduce an image; 2,408 parameters.

    Attributes:
        widths: Layer sizes, from pixels to pixels.
    """

    widths: tuple[int, ...] = (NUM_PIXELS, 16, 8, 16, NUM_PIXELS)

    def init_params(self, key: Array) -> Params:
        """Untrained perceptron."""
        return init_mlp(key, self.widths)

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Squared error over that of a mid-grey image, which untrained networks answer, times log(10)."""
        answers = jax.nn.sigmoid(compute_mlp(params, batch["x"]))
        error = jnp.mean(jnp.square(answers - batch["x"]))
        contrast = jnp.mean(jnp.square(0.5 - batch["x"]))
        return UNTRAINED_LOSS * error / jnp.maximum(contrast, _LEAST_CONTRAST)
