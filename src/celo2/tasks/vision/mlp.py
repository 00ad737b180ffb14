"""Multilayer perceptrons and their image tasks: classifiers and autoencoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import nearest_name
from celo2.tasks.base import Batch, Dataset, Params, Task
from celo2.tasks.nn import linear, linear_template, sample_params
from celo2.tasks.vision.classifier import NUM_CLASSES, make_classifier
from celo2.tasks.vision.datasets import (
    Prefer,
    load_digits_8x8,
    load_fashion_mnist,
    load_shipped_images,
)

Activation = Callable[[Array], Array]
ACTIVATIONS: Mapping[str, Activation] = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}
_CONTRAST_IMAGES = 1_000  # sample for an untrained autoencoder's loss


def init_mlp(key: Array, sizes: Sequence[int]) -> Params:
    """Draws a perceptron's parameters: `layer_0`, `layer_1`, … and `head`, each with `kernel` and `bias`.

    Args:
        key: Random key.
        sizes: Number of inputs, hidden widths, number of outputs, such as `(784, 128, 128, 10)`.
    """
    names = [f"layer_{index}" for index in range(len(sizes) - 2)] + ["head"]
    layers = zip(names, sizes[:-1], sizes[1:], strict=True)
    return sample_params(key, {name: linear_template(num_in, num_out) for name, num_in, num_out in layers})


def compute_mlp(params: Params, inputs: Array, activation: Activation = jax.nn.relu) -> Array:
    """Flattens each example and applies the hidden layers (linear, activation) and the head.

    Args:
        params: From `init_mlp`.
        inputs: `(N, ...)` float32.
        activation: Elementwise function.

    Returns:
        `(N, outputs)` float32.
    """
    hidden = inputs.reshape(inputs.shape[0], -1)
    for index in range(len(params) - 1):
        hidden = activation(linear(params[f"layer_{index}"], hidden))
    return linear(params["head"], hidden)


def make_fashion_mlp(
    *, prefer: Prefer = "auto", widths: Sequence[int] = (128, 128), batch_size: int = 128
) -> Task:
    """Makes the task of Fashion-MNIST 28 × 28 with a 784-128-128-10 perceptron, 118,282 parameters.

    Equals the first published task (`ImageMLP_FashionMnist_Relu128x128`), except for the data split.

    Args:
        prefer: Full set or shipped sample; see `load_fashion_mnist`.
        widths: Hidden widths.
        batch_size: Images in a training batch.
    """
    return _make_mlp_task("fashion-mlp", load_fashion_mnist(prefer), widths, batch_size)


def make_digits_mlp(*, widths: Sequence[int] = (32, 32), batch_size: int = 64) -> Task:
    """Makes the task of the UCI digits, 8 × 8, with a 64-32-32-10 perceptron, 3,466 parameters.

    Args:
        widths: Hidden widths.
        batch_size: Images in a training batch.
    """
    return _make_mlp_task("digits-mlp", load_digits_8x8(), widths, batch_size)


def _make_mlp_task(name: str, dataset: Dataset, widths: Sequence[int], batch_size: int) -> Task:
    init = partial(init_mlp, sizes=(_num_pixels(dataset), *widths, NUM_CLASSES))
    return make_classifier(name, dataset, init, compute_mlp, batch_size=batch_size)


def make_mlp(
    *,
    images: str = "fashion-mnist",
    widths: Sequence[int] = (32,),
    activation: str = "relu",
    batch_size: int = 64,
) -> Task:
    """Makes a perceptron classifier of any size on a shipped image set.

    Args:
        images: A name of `celo2.tasks.vision.datasets.load_shipped_images`.
        widths: Hidden widths.
        activation: A name of `ACTIVATIONS`.
        batch_size: Images in a training batch.

    Raises:
        ValueError: An unknown image set or activation.

    Example:
        >>> make_mlp(images="digits", widths=(16, 16)).batch_size
        64
    """
    dataset = load_shipped_images(images)
    apply = partial(compute_mlp, activation=_find_activation(activation))
    init = partial(init_mlp, sizes=(_num_pixels(dataset), *widths, NUM_CLASSES))
    return make_classifier("mlp", dataset, init, apply, batch_size=batch_size)


def make_autoencoder(
    *,
    images: str = "fashion-mnist",
    widths: Sequence[int] = (32, 8, 32),
    activation: str = "relu",
    batch_size: int = 64,
) -> Task:
    """Makes an autoencoder: a perceptron with a sigmoid, trained on the mean squared error per pixel.

    Args:
        images: A name of `celo2.tasks.vision.datasets.load_shipped_images`.
        widths: Hidden widths, the narrowest in the middle.
        activation: A name of `ACTIVATIONS`.
        batch_size: Images in a training batch.

    Raises:
        ValueError: An unknown image set or activation.
    """
    dataset = load_shipped_images(images)
    hidden = _find_activation(activation)
    num_pixels = _num_pixels(dataset)

    def loss(params: Params, batch: Batch) -> Array:
        pixels = batch["image"].reshape(batch["image"].shape[0], -1).astype(jnp.float32) / 255.0
        return jnp.mean(jnp.square(jax.nn.sigmoid(compute_mlp(params, pixels, hidden)) - pixels))

    some = dataset.train["image"][:_CONTRAST_IMAGES] / 255.0
    return Task(
        name="autoencoder",
        dataset=dataset,
        init=partial(init_mlp, sizes=(num_pixels, *widths, num_pixels)),
        loss=loss,
        batch_size=batch_size,
        initial_loss=float(((some - 0.5) ** 2).mean()),  # an untrained network outputs mid-grey
    )


def _num_pixels(dataset: Dataset) -> int:
    return math.prod(dataset.train["image"].shape[1:])


def _find_activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        hint = nearest_name(name, ACTIVATIONS)
        raise ValueError(f"unknown activation {name!r}{hint} There are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]
