"""The perceptrons and convolutional networks of the published image tasks, in Flax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
from flax import linen as nn
from jax import Array

from celo2.tasks.flax_layers import BatchNorm, Conv3x3, haiku_layer_norm, haiku_linear

Norm = Literal["none", "batch", "layer"]


class Perceptron(nn.Module):
    """Perceptron: flattens, applies linear, optional layer norm and activation for each width, then the head.

    Parameters: `layer_0`, …, `norm_0`, … and `head`.

    Attributes:
        widths: Widths of the hidden layers.
        outputs: Number of outputs of the head.
        activation: Elementwise function.
        norm: Whether to apply layer norm before each activation.
    """

    widths: tuple[int, ...]
    outputs: int
    activation: Callable[[Array], Array] = jax.nn.relu
    norm: bool = False

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the network: `(N, ...)` → `(N, outputs)`."""
        hidden = inputs.reshape(inputs.shape[0], -1)
        for index, width in enumerate(self.widths):
            hidden = haiku_linear(width, f"layer_{index}")(hidden)
            if self.norm:
                hidden = haiku_layer_norm(f"norm_{index}")(hidden)
            hidden = self.activation(hidden)
        return haiku_linear(self.outputs, "head")(hidden)


class ConvNet(nn.Module):
    """Convolutional network: 3 × 3 convolution, ReLU and norm for each layer, mean over positions, head.

    Parameters: `conv_0`, …, `norm_0`, … and `head`.

    Attributes:
        channels: Output channels of each layer.
        outputs: Number of outputs of the head.
        norm: Norm after ReLU: over the batch and positions, over the channels of each position, or none.
    """

    channels: tuple[int, ...]
    outputs: int
    norm: Norm = "none"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Applies the network: `(N, H, W, C)` → `(N, outputs)`."""
        hidden = images
        for index, size in enumerate(self.channels):
            stride = 2 if index == 0 else 1
            hidden = jax.nn.relu(Conv3x3(size, stride, name=f"conv_{index}")(hidden))
            if self.norm == "batch":
                hidden = BatchNorm(name=f"norm_{index}")(hidden)
            elif self.norm == "layer":
                hidden = haiku_layer_norm(f"norm_{index}")(hidden)
        return haiku_linear(self.outputs, "head")(hidden.mean(axis=(1, 2)))
