"""Published image tasks: perceptrons, convolutional networks and autoencoders, by their published names.

Source: google/learned_optimization, which defines them; Celo (arXiv 2501.12670) evaluates on them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2._utils.extras import require
from celo2.tasks.base import Batch, Dataset, Params, Size, Task
from celo2.tasks.vision.classifier import make_classifier
from celo2.tasks.vision.image_sets import Portion, load_evaluation_set

if TYPE_CHECKING:
    from celo2.tasks.vision.networks import Norm


@dataclasses.dataclass(frozen=True)
class ImageSize:
    """Scaling of the published tasks to a size.

    Attributes:
        grey_side: Side of MNIST's and Fashion-MNIST's images, in pixels.
        colour_side: Side of CIFAR's images, in pixels.
        narrow: Divisor of the published widths.
        fewer: Divisor of the published batch sizes.
    """

    grey_side: int
    colour_side: int
    narrow: int
    fewer: int


SIZES: Mapping[Size, ImageSize] = {
    "full": ImageSize(grey_side=28, colour_side=32, narrow=1, fewer=1),
    "small": ImageSize(grey_side=14, colour_side=16, narrow=2, fewer=2),
    "tiny": ImageSize(grey_side=8, colour_side=8, narrow=4, fewer=8),
}
NUM_CLASSES = {"mnist": 10, "fashion-mnist": 10, "cifar10": 10, "cifar100": 100}
CLASSIFIER_BATCH = 128  # images, for every published classifier
CONTRAST_IMAGES = 1_000  # sample for an untrained autoencoder's loss


def make_image_mlp(
    name: str,
    images: str,
    widths: tuple[int, ...],
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    norm: bool = False,
    initial_loss: float,
    batch_size: int | None = None,
    size: Size = "full",
) -> Task:
    """Makes a perceptron that classifies images.

    Args:
        name: Name of the task.
        images: Name of a set of `load_evaluation_set`.
        widths: Hidden widths.
        activation: Elementwise function.
        norm: Whether a layer norm comes before each activation.
        initial_loss: Loss of an untrained network, as published.
        batch_size: Images in a training batch; None: the size's.
        size: See `SIZES`.
    """
    require("eval", "flax")
    from celo2.tasks.vision.networks import Perceptron

    network = Perceptron(_narrow(widths, size), NUM_CLASSES[images], activation, norm)
    return _make_classifier(name, images, network, size, batch_size, initial_loss)


def make_image_conv(
    name: str,
    images: str,
    channels: tuple[int, ...] = (32, 64, 64),
    *,
    norm: Norm = "none",
    portion: Portion = "80pct",
    initial_loss: float,
    batch_size: int | None = None,
    size: Size = "full",
) -> Task:
    """Makes an image classifier of 3 × 3 convolutions with strides 2, 1, 1.

    Args:
        name: Name of the task.
        images: Name of a set of `load_evaluation_set`, in colour.
        channels: Output channels of each layer.
        norm: Norm after each ReLU, `"none"`, `"batch"` or `"layer"`.
        portion: Portion of the training file.
        initial_loss: Loss of an untrained network, as published.
        batch_size: Images in a training batch; None: the size's.
        size: See `SIZES`.
    """
    require("eval", "flax")
    from celo2.tasks.vision.networks import ConvNet

    network = ConvNet(_narrow(channels, size), NUM_CLASSES[images], norm)
    return _make_classifier(name, images, network, size, batch_size, initial_loss, portion)


def make_image_autoencoder(
    name: str,
    images: str,
    widths: tuple[int, ...] = (128, 32, 128),
    *,
    full_batch: int,
    batch_size: int | None = None,
    size: Size = "full",
) -> Task:
    """Makes an autoencoder: a perceptron with a sigmoid, trained on the mean squared error.

    Args:
        name: Name of the task.
        images: Name of a set of `load_evaluation_set`.
        widths: Hidden widths, the narrowest in the middle.
        full_batch: Batch size of the published task.
        batch_size: Images in a training batch; None: the size's.
        size: See `SIZES`.
    """
    require("eval", "flax")
    from celo2.tasks.flax_layers import make_functions
    from celo2.tasks.vision.networks import Perceptron

    dataset = _load(images, size)
    shape = dataset.train["image"].shape[1:]
    init, compute = make_functions(Perceptron(_narrow(widths, size), math.prod(shape)), shape)

    def loss(params: Params, batch: Batch) -> Array:
        pixels = batch["image"].astype(jnp.float32) / 255.0
        answers = jax.nn.sigmoid(compute(params, pixels))
        return jnp.square(answers - pixels.reshape(answers.shape)).mean()

    return Task(
        name=name,
        dataset=dataset,
        init=init,
        loss=loss,
        batch_size=batch_size or full_batch // SIZES[size].fewer,
        initial_loss=_contrast(dataset),
    )


def _make_classifier(
    name: str,
    images: str,
    network: Any,
    size: Size,
    batch_size: int | None,
    initial_loss: float,
    portion: Portion = "80pct",
) -> Task:
    from celo2.tasks.flax_layers import make_functions

    dataset = _load(images, size, portion)
    init, compute = make_functions(network, dataset.train["image"].shape[1:])
    return make_classifier(
        name,
        dataset,
        init,
        compute,
        batch_size=batch_size or CLASSIFIER_BATCH // SIZES[size].fewer,
        num_classes=NUM_CLASSES[images],
        initial_loss=initial_loss,
    )


def _load(images: str, size: Size, portion: Portion = "80pct") -> Dataset:
    sizes = SIZES[size]
    side = sizes.colour_side if images.startswith("cifar") else sizes.grey_side
    return load_evaluation_set(images, side, portion)


def _narrow(widths: tuple[int, ...], size: Size) -> tuple[int, ...]:
    return tuple(width // SIZES[size].narrow for width in widths)


def _contrast(dataset: Dataset) -> float:
    """Computes the pixels' mean squared distance from mid-grey, an untrained autoencoder's output."""
    pixels = dataset.train["image"][:CONTRAST_IMAGES].astype(np.float32) / 255.0
    return float(np.square(pixels - 0.5).mean())


_CIFAR10_MLP = {"images": "cifar10", "widths": (128, 128, 128)}
_PUBLISHED: Mapping[str, tuple[Callable[..., Task], Mapping[str, Any], str]] = {
    "ImageMLP_FashionMnist_Relu128x128": (
        make_image_mlp,
        {"images": "fashion-mnist", "widths": (128, 128), "initial_loss": 2.298},
        "784-128-128-10 perceptron on Fashion-MNIST",
    ),
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": (
        make_image_mlp,
        {**_CIFAR10_MLP, "norm": True, "initial_loss": 2.406},
        "3072-128-128-128-10 perceptron with layer norm on CIFAR-10",
    ),
    "ImageMLP_Cifar10_128x128x128_Tanh_bs128": (
        make_image_mlp,
        {**_CIFAR10_MLP, "activation": jnp.tanh, "initial_loss": 2.314},
        "3072-128-128-128-10 perceptron with tanh on CIFAR-10",
    ),
    "Conv_Cifar10_32x64x64": (
        make_image_conv,
        {"images": "cifar10", "initial_loss": 2.302},
        "three convolutions on CIFAR-10",
    ),
    "Conv_Cifar10_32x64x64_batchnorm": (
        make_image_conv,
        {"images": "cifar10", "norm": "batch", "initial_loss": 2.310},
        "three convolutions with batch norm on CIFAR-10",
    ),
    "Conv_Cifar10_32x64x64_layernorm": (
        make_image_conv,
        {"images": "cifar10", "norm": "layer", "initial_loss": 2.429},
        "three convolutions with layer norm on CIFAR-10",
    ),
    "Conv_Cifar100_32x64x64": (
        make_image_conv,
        {"images": "cifar100", "initial_loss": 4.606},
        "three convolutions on CIFAR-100",
    ),
    "Conv_Cifar100_32x64x64_1pct": (
        make_image_conv,
        {"images": "cifar100", "initial_loss": 4.606, "portion": "1pct"},
        "three convolutions on 1 % of CIFAR-100",
    ),
    "ImageMLPAE_Cifar10_128x32x128_bs256": (
        make_image_autoencoder,
        {"images": "cifar10", "full_batch": 256},
        "3072-128-32-128-3072 autoencoder of CIFAR-10",
    ),
    "ImageMLPAE_Mnist_128x32x128_bs128": (
        make_image_autoencoder,
        {"images": "mnist", "full_batch": 128},
        "784-128-32-128-784 autoencoder of MNIST",
    ),
}

IMAGE_TASKS: Mapping[str, tuple[Callable[..., Task], str]] = {
    name: (partial(make, name, **options), summary) for name, (make, options, summary) in _PUBLISHED.items()
}
"""Constructor (of `size` and `batch_size`) and one-line summary of each task, by name."""
