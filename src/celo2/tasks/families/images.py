"""Image families: perceptrons, deep perceptrons, convolutional networks and autoencoders on image sets."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Params
from celo2.tasks.families.base import UNTRAINED_LOSS, FamilyData, TaskFamily
from celo2.tasks.nn import cross_entropy
from celo2.tasks.vision.classifier import NUM_CLASSES
from celo2.tasks.vision.convolution import compute_conv_net, init_conv_net
from celo2.tasks.vision.mlp import compute_mlp, init_mlp

SIDE = 8  # pixels
NUM_PIXELS = SIDE * SIDE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFamily(TaskFamily):
    """Base class of tasks on the grey 8 × 8 image sets with ten classes each."""

    source = "images"

    def sample_draw(self, key: Array, data: FamilyData, set_index: Array) -> Array:
        """Draws the indices of images from one set: `(batch,)` int32."""
        index = jax.random.randint(key, (self.batch_size,), 0, data.sizes[set_index])
        return index + data.offsets[set_index]

    def make_batch(self, draw: Array, data: FamilyData) -> Batch:
        """Makes `x` `(batch, 64)` in [0, 1] and `y` `(batch,)`."""
        return {"x": data.images[draw].astype(jnp.float32) / 255.0, "y": data.labels[draw]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMLPFamily(ImageFamily):
    """Perceptrons that classify images, with cross-entropy in nats; 2,410 parameters.

    Attributes:
        widths: Layer sizes, input and classes included.
    """

    widths: tuple[int, ...] = (NUM_PIXELS, 32, NUM_CLASSES)

    def init_params(self, key: Array) -> Params:
        """Draws an untrained perceptron."""
        return init_mlp(key, self.widths)

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Computes the mean cross-entropy, in nats."""
        return cross_entropy(compute_mlp(params, batch["x"]), batch["y"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepMLPFamily(ImageMLPFamily):
    """Perceptrons as in `ImageMLPFamily`, with five hidden layers of 16; 2,298 parameters.

    Each layer shrinks its input to 0.6, so that gradients start small and grow.
    """

    widths: tuple[int, ...] = (NUM_PIXELS, 16, 16, 16, 16, 16, NUM_CLASSES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConvFamily(ImageFamily):
    """Two strided 3 × 3 convolutions, the mean over positions and a linear head; 1,418 parameters.

    Attributes:
        channels: Output channels of each convolution.
    """

    channels: tuple[int, ...] = (8, 16)

    def init_params(self, key: Array) -> Params:
        """Draws an untrained network."""
        return init_conv_net(key, self.channels)

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Computes the mean cross-entropy, in nats."""
        return cross_entropy(compute_conv_net(params, batch["x"].reshape(-1, SIDE, SIDE)), batch["y"])


_LEAST_CONTRAST = 1e-3  # mean square of a batch's pixels around mid-grey; image sets have 0.02 to 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderFamily(ImageFamily):
    """64-16-8-16-64 perceptrons with a sigmoid that reconstruct images; 2,408 parameters.

    Attributes:
        widths: Layer sizes, from pixels to pixels.
    """

    widths: tuple[int, ...] = (NUM_PIXELS, 16, 8, 16, NUM_PIXELS)

    def init_params(self, key: Array) -> Params:
        """Draws an untrained perceptron."""
        return init_mlp(key, self.widths)

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Computes the squared error over that of mid-grey (an untrained network's output), × log(10)."""
        answers = jax.nn.sigmoid(compute_mlp(params, batch["x"]))
        error = jnp.mean(jnp.square(answers - batch["x"]))
        contrast = jnp.mean(jnp.square(0.5 - batch["x"]))
        return UNTRAINED_LOSS * error / jnp.maximum(contrast, _LEAST_CONTRAST)
