"""Multilayer perceptrons with ReLU, and the image tasks that train one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
from jax import Array

from celo2.tasks.base import Dataset, Params, Task
from celo2.tasks.classifier import NUM_CLASSES, make_classifier
from celo2.tasks.datasets import Prefer, load_digits_8x8, load_fashion_mnist
from celo2.tasks.layers import linear, linear_template, sample_params

__all__ = ["compute_mlp", "init_mlp", "make_digits_mlp", "make_fashion_mlp"]


def init_mlp(key: Array, sizes: Sequence[int]) -> Params:
    """Parameters of a perceptron: `layer_0`, `layer_1`, … and `head`, each with `kernel` and `bias`.

    Args:
        key: Random key.
        sizes: Number of inputs, hidden widths, number of outputs: `(784, 128, 128, 10)` say.
    """
    names = [f"layer_{index}" for index in range(len(sizes) - 2)] + ["head"]
    layers = zip(names, sizes[:-1], sizes[1:], strict=True)
    return sample_params(key, {name: linear_template(num_in, num_out) for name, num_in, num_out in layers})


def compute_mlp(params: Params, inputs: Array) -> Array:
    """Flattens each example, then linear and ReLU for each hidden layer, then the head.

    Args:
        params: From `init_mlp`.
        inputs: `(N, ...)` float32.

    Returns:
        `(N, outputs)` float32.
    """
    hidden = inputs.reshape(inputs.shape[0], -1)
    for index in range(len(params) - 1):
        hidden = jax.nn.relu(linear(params[f"layer_{index}"], hidden))
    return linear(params["head"], hidden)


def make_fashion_mlp(
    *, prefer: Prefer = "auto", widths: Sequence[int] = (128, 128), batch_size: int = 128
) -> Task:
    """Fashion-MNIST 28 × 28 with a 784-128-128-10 perceptron, 118,282 parameters.

    The first of the published tasks (`ImageMLP_FashionMnist_Relu128x128`), up to its split of the data.

    Args:
        prefer: Full set or shipped sample, see `load_fashion_mnist`.
        widths: Hidden widths.
        batch_size: Images in a training batch.
    """
    return _make_mlp_task("fashion-mlp", load_fashion_mnist(prefer), widths, batch_size)


def make_digits_mlp(*, widths: Sequence[int] = (32, 32), batch_size: int = 64) -> Task:
    """The UCI digits, 8 × 8, with a 64-32-32-10 perceptron, 3,466 parameters.

    Args:
        widths: Hidden widths.
        batch_size: Images in a training batch.
    """
    return _make_mlp_task("digits-mlp", load_digits_8x8(), widths, batch_size)


def _make_mlp_task(name: str, dataset: Dataset, widths: Sequence[int], batch_size: int) -> Task:
    num_pixels = math.prod(dataset.train["image"].shape[1:])
    init = partial(init_mlp, sizes=(num_pixels, *widths, NUM_CLASSES))
    return make_classifier(name, dataset, init, compute_mlp, batch_size=batch_size)
