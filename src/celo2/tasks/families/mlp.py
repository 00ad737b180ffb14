"""Perceptrons on images: the published family, and a deep and narrow one.

Source of the first: the four-task recipe of VeLO (arXiv 2211.09760) and Celo2 (arXiv 2602.19142, section
4), an MLP 64-32-10 on 8×8 grey images in [0, 1], batches of 64.
"""

from __future__ import annotations

import dataclasses

from jax import Array

from celo2.tasks.base import Batch, Params
from celo2.tasks.classifier import NUM_CLASSES
from celo2.tasks.families._images import NUM_PIXELS, ImageFamily
from celo2.tasks.layers import cross_entropy
from celo2.tasks.mlp import compute_mlp, init_mlp

__all__ = ["DeepMLPFamily", "ImageMLPFamily"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMLPFamily(ImageFamily):
    """Perceptrons that classify images, by cross-entropy in nats; 2,410 parameters.

    Attributes:
        widths: Layer sizes, input and classes included.
    """

    widths: tuple[int, ...] = (NUM_PIXELS, 32, NUM_CLASSES)

    def init_params(self, key: Array) -> Params:
        """Untrained perceptron."""
        return init_mlp(key, self.widths)

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Mean cross-entropy, in nats."""
        return cross_entropy(compute_mlp(params, batch["x"]), batch["y"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepMLPFamily(ImageMLPFamily):
    """The same with five hidden layers of 16; 2,298 parameters.

    Each layer shrinks its signal to 0.6 of what came in, so that the gradients begin small and grow.
    """

    widths: tuple[int, ...] = (NUM_PIXELS, 16, 16, 16, 16, 16, NUM_CLASSES)
