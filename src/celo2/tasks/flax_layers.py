"""Flax layers and initializers for the published image networks.

Initial values are drawn as vectors and then reshaped: XLA takes more than ten times as long to compile
random draws of an array with four axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from celo2.tasks.base import Params
from celo2.tasks.nn import LAYER_NORM_EPS, TRUNCATED_STD, conv

BATCH_NORM_EPS = 1e-5  # Haiku's


def make_functions(
    network: nn.Module, image_shape: Sequence[int]
) -> tuple[Callable[[Array], Params], Callable[[Params, Array], Array]]:
    """Returns `key → params` and `(params, images) → outputs` of a network that has only parameters.

    Args:
        network: A module that accepts images `(N, *image_shape)` float32.
        image_shape: Shape of one image.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def init(key: Array) -> Params:
        return network.lazy_init(key, images)["params"]

    def compute(params: Params, images: Array) -> Array:
        return cast(Array, network.apply({"params": params}, images))

    return init, compute


def haiku_normal(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Draws Haiku's default: a normal truncated at ±2, over √fan_in; the fan-in is all axes but the last."""
    draws = jax.random.truncated_normal(key, -2.0, 2.0, (math.prod(shape),), dtype)
    return draws.reshape(shape) / math.sqrt(math.prod(shape[:-1]))


def lecun_normal(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Draws Flax's default: `haiku_normal` corrected for truncation, with standard deviation 1/√fan_in."""
    return haiku_normal(key, shape, dtype) / TRUNCATED_STD


def glorot_uniform(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Draws uniformly within ±√(6 / (inputs + outputs)) for a matrix `(inputs, outputs)`."""
    limit = math.sqrt(6 / sum(shape))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


def normal(std: float) -> Callable[..., Array]:
    """Makes a zero-mean normal initializer with this deviation: `(key, shape, dtype) → array`."""

    def draw(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return std * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)

    return draw


def haiku_linear(size: int, name: str) -> nn.Dense:
    """Makes a linear layer with a `haiku_normal` kernel `(inputs, size)` and a zero bias."""
    return nn.Dense(size, kernel_init=haiku_normal, name=name)


def haiku_layer_norm(name: str) -> nn.LayerNorm:
    """Makes a layer norm over the last axis, with Haiku's epsilon."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, use_fast_variance=False, name=name)


class Conv3x3(nn.Module):
    """3 × 3 convolution, SAME padding: `(N, H, W, C)` → `(N, ⌈H / stride⌉, ⌈W / stride⌉, size)`.

    Attributes:
        size: Number of output channels.
        stride: Stride in pixels.
    """

    size: int
    stride: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolves with a kernel `(3, 3, C, size)` and adds a bias `(size,)`, initially zero."""
        kernel = self.param("kernel", haiku_normal, (3, 3, inputs.shape[-1], self.size))
        bias = self.param("bias", nn.initializers.zeros, (self.size,))
        return conv({"kernel": kernel, "bias": bias}, inputs, self.stride)


class BatchNorm(nn.Module):
    """Normalisation of each channel over the current batch, in both training and validation.

    There are no running averages: the published evaluation is in training mode.
    """

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Normalises `(N, H, W, C)`; scale and bias are `(1, 1, 1, C)`, as in Haiku."""
        shape = (1, 1, 1, inputs.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        centred = inputs - inputs.mean(axis=(0, 1, 2), keepdims=True)
        variance = jnp.square(centred).mean(axis=(0, 1, 2), keepdims=True)
        return centred * jax.lax.rsqrt(variance + BATCH_NORM_EPS) * scale + bias


class PatchEmbedding(nn.Module):
    """Convolution whose stride is its size, VALID: `(N, H, W, C)` → `(N, H // patch · W // patch, width)`.

    Computed as one matrix product over the pixels of each patch, in row-major order of patches.

    Attributes:
        patch: Side of a patch in pixels.
        width: Width of a token.
    """

    patch: int
    width: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Embeds with a LeCun-normal kernel `(patch, patch, C, width)` and a zero bias `(width,)`."""
        count, height, width, channels = images.shape
        rows, columns, side = height // self.patch, width // self.patch, self.patch
        kernel = self.param("kernel", lecun_normal, (side, side, channels, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        patches = images[:, : rows * side, : columns * side].reshape(
            count, rows, side, columns, side, channels
        )
        patches = patches.swapaxes(2, 3).reshape(count, rows * columns, side * side * channels)
        return patches @ kernel.reshape(-1, self.width) + bias[None, None]
