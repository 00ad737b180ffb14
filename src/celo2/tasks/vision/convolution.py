"""A small convolutional network on Fashion-MNIST, unlike the perceptrons of meta-training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Params, Task
from celo2.tasks.nn import conv, conv_template, linear, linear_template, sample_params
from celo2.tasks.vision.classifier import NUM_CLASSES, make_classifier
from celo2.tasks.vision.datasets import Prefer, load_fashion_mnist, load_shipped_images


def init_conv_net(key: Array, channels: Sequence[int]) -> Params:
    """Draws parameters `conv_0`, `conv_1`, … and `head`, each with `kernel` and `bias`.

    Args:
        key: Random key.
        channels: Output channels of each convolution; the input has one channel.
    """
    layers = enumerate(zip((1, *channels[:-1]), channels, strict=True))
    convolutions = {f"conv_{index}": conv_template(num_in, num_out) for index, (num_in, num_out) in layers}
    return sample_params(key, {**convolutions, "head": linear_template(channels[-1], NUM_CLASSES)})


def compute_conv_net(params: Params, images: Array) -> Array:
    """Applies 3 × 3 convolutions of stride 2 with ReLU, averages over positions, and applies the head.

    Args:
        params: From `init_conv_net`.
        images: `(N, H, W)` float32.

    Returns:
        `(N, 10)` float32.
    """
    hidden = images[..., None]
    for index in range(len(params) - 1):
        hidden = jax.nn.relu(conv(params[f"conv_{index}"], hidden, stride=2))
    return linear(params["head"], jnp.mean(hidden, axis=(1, 2)))


def make_fashion_conv(
    *, prefer: Prefer = "auto", channels: Sequence[int] = (8, 16, 32), batch_size: int = 64
) -> Task:
    """Makes the task of Fashion-MNIST 28 × 28 with three strided convolutions, 6,218 parameters.

    Args:
        prefer: Full set or shipped sample; see `load_fashion_mnist`.
        channels: Output channels of each convolution.
        batch_size: Images in a training batch.
    """
    init = partial(init_conv_net, channels=tuple(channels))
    dataset = load_fashion_mnist(prefer)
    return make_classifier("fashion-conv", dataset, init, compute_conv_net, batch_size=batch_size)


def make_conv(
    *, images: str = "fashion-mnist", channels: Sequence[int] = (8, 16), batch_size: int = 64
) -> Task:
    """Makes a classifier with any number and width of strided convolutions, on a shipped image set.

    Args:
        images: A name accepted by `celo2.tasks.vision.datasets.load_shipped_images`.
        channels: Output channels of each convolution.
        batch_size: Images in a training batch.

    Raises:
        ValueError: An unknown image set.
    """
    init = partial(init_conv_net, channels=tuple(channels))
    dataset = load_shipped_images(images)
    return make_classifier("conv", dataset, init, compute_conv_net, batch_size=batch_size)
