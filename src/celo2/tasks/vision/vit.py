"""Vision transformer for the published tasks, in Flax; pre-norm, without dropout.

Source: Dosovitskiy et al. (arXiv 2010.11929) for classification with a class token, and Beyer et al.
(arXiv 2205.01580) for the plain variant, which averages the tokens and has fixed positions.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from celo2.tasks.flax_layers import PatchEmbedding, glorot_uniform, lecun_normal, normal

Pooling = Literal["token", "mean"]

LAYER_NORM_EPS = 1e-6  # Flax's
MLP_RATIO = 4  # hidden width of a block's MLP, relative to the stream's
POSITION_STD = 0.02  # of learned positions
MLP_BIAS_STD = 1e-6
TEMPERATURE = 10_000.0  # the longest wavelength of fixed positions is about 2π times this


class VisionTransformer(nn.Module):
    """Vision transformer: patches → tokens → blocks → logits; the head starts at zero, the loss at ln K.

    Attributes:
        num_classes: Number of classes, K.
        patch: Side of a patch in pixels.
        width: Width of the residual stream; a multiple of `num_heads`, and of 4 if positions are fixed.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        pooling: `"token"`: a class token and learned positions; `"mean"`: the mean of all
            tokens goes through a linear layer with tanh, and positions are fixed sinusoids.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    num_heads: int
    pooling: Pooling = "token"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Computes logits: `(N, H, W, C)` → `(N, num_classes)`."""
        count, height, width = images.shape[:3]
        stream = PatchEmbedding(self.patch, self.width, name="embedding")(images)
        if self.pooling == "token":
            token = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
            stream = jnp.concatenate([jnp.tile(token, (count, 1, 1)), stream], axis=1)
            shape = (1, *stream.shape[1:])
            stream = stream + self.param("pos_embedding", normal(POSITION_STD), shape)
        else:
            stream = stream + sine_positions(height // self.patch, width // self.patch, self.width)[None]
        for index in range(self.depth):
            stream = _Block(self.num_heads, name=f"block_{index}")(stream)
        stream = _layer_norm("final_norm")(stream)
        if self.pooling == "token":
            features = stream[:, 0]
        else:
            features = jnp.tanh(
                nn.Dense(self.width, kernel_init=lecun_normal, name="pre_logits")(stream.mean(axis=1))
            )
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(features)


class _Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; query, key and value are `(width, heads, size)`."""

    num_heads: int

    @nn.compact
    def __call__(self, stream: Array) -> Array:
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads, kernel_init=glorot_uniform, name="attention"
        )
        stream = stream + attention(_layer_norm("attention_norm")(stream))
        return stream + _MLP(name="mlp")(_layer_norm("mlp_norm")(stream))


class _MLP(nn.Module):
    """Linear, GELU (its tanh form), linear."""

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        def linear(size: int, name: str) -> nn.Dense:
            bias_init = normal(MLP_BIAS_STD)
            return nn.Dense(size, kernel_init=glorot_uniform, bias_init=bias_init, name=name)

        width = inputs.shape[-1]
        return linear(width, "down")(jax.nn.gelu(linear(MLP_RATIO * width, "up")(inputs), approximate=True))


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, name=name)


def sine_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Computes fixed position embeddings of a grid: sines and cosines of the column, then of the row.

    Each takes a quarter of the width, with geometrically spaced frequencies from 1 to 1/10,000.

    Args:
        rows: Number of rows of patches.
        columns: Number of columns of patches.
        width: Width of a token; a multiple of 4, at least 8.

    Returns:
        `(rows · columns, width)` float32, in row-major order.
    """
    if width % 4 or width < 8:
        raise ValueError(f"width must be a multiple of 4 and at least 8 for fixed positions, got {width}.")
    frequency = TEMPERATURE ** -np.linspace(0.0, 1.0, width // 4)
    row, column = (axis.reshape(-1, 1) * frequency for axis in np.mgrid[:rows, :columns])
    waves = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
    return np.concatenate(waves, axis=1).astype(np.float32)
