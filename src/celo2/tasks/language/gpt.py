"""The GPT of the published language-model runs: RMS norms without scales, rotary positions, no biases."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

RMS_EPS = 1e-6
ROTARY_BASE = 1e4


class GPT(nn.Module):
    """GPT language model, tokens `(N, T)` int32 → logits of the next token `(N, T, vocabulary)`.

    The logits are the products of rms(x) with a separate output embedding `(vocabulary, width)`.

    Attributes:
        vocabulary: Number of tokens.
        width: Width of the residual stream, a multiple of `head_size`.
        num_layers: Number of blocks of attention and MLP.
        head_size: Width of an attention head.
    """

    vocabulary: int
    width: int
    num_layers: int
    head_size: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Computes the logits."""
        shape = (self.vocabulary, self.width)
        table_init = nn.initializers.normal(1 / math.sqrt(self.width))
        stream = nn.Embed(*shape, embedding_init=table_init, name="embedding")(tokens)
        for index in range(self.num_layers):
            stream = Block(self.head_size, name=f"block_{index}")(stream)
        output = self.param("output_embedding", table_init, shape)
        return rms_normalize(stream) @ output.T


class Block(nn.Module):
    """`x + attention(rms(x))`, then `x + mlp(rms(x))`: `(N, T, width)` → the same."""

    head_size: int

    @nn.compact
    def __call__(self, stream: Array) -> Array:
        """Applies attention and the MLP."""
        stream = stream + Attention(self.head_size, name="attention")(rms_normalize(stream))
        return stream + MLP(name="mlp")(rms_normalize(stream))


class Attention(nn.Module):
    """Causal attention with normalised and rotated queries and keys per head: `(N, T, width)` → the same.

    Its arrays are `qkv`, `(3, heads, width, head_size)`, and `output`, `(heads, head_size, width)`. They are
    initialized Glorot-uniformly, with the leading axes counted as a receptive field.

    Attributes:
        head_size: Width of a head, a divisor of the stream's width.
    """

    head_size: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies softmax(query · key / √head_size) to the values."""
        width = inputs.shape[-1]
        num_heads = width // self.head_size
        init = nn.initializers.glorot_uniform()
        qkv = self.param("qkv", init, (3, num_heads, width, self.head_size))
        output = self.param("output", init, (num_heads, self.head_size, width))
        query, key, value = jnp.einsum("ntd,chds->cnths", inputs, qkv)
        query, key = (rotate(rms_normalize(part)) for part in (query, key))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return jnp.einsum("nths,hsd->ntd", mixed, output)


class MLP(nn.Module):
    """Linear to four times the width, GELU, linear back, no biases: `(N, T, width)` → the same."""

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layer."""
        width, init = inputs.shape[-1], nn.initializers.glorot_uniform()
        up = nn.Dense(4 * width, use_bias=False, kernel_init=init, name="up")
        down = nn.Dense(width, use_bias=False, kernel_init=init, name="down")
        return down(nn.gelu(up(inputs), approximate=True))


def rms_normalize(inputs: Array) -> Array:
    """Normalises the last axis to mean square one: `x · rsqrt(mean(x²) + 1e-6)`."""
    return inputs * jax.lax.rsqrt(jnp.square(inputs).mean(axis=-1, keepdims=True) + RMS_EPS)


def rotate(inputs: Array) -> Array:
    """Applies rotary positions: at position t, channels i and i + S/2 turn by `t · 10000^(-2i / S)`.

    Source: RoFormer (arXiv 2104.09864, section 3.2), with the pairs half a head apart.

    Args:
        inputs: `(N, T, heads, S)`, S even.

    Returns:
        The same shape; the product of a rotated query and key depends only on their distance.
    """
    half = inputs.shape[-1] // 2
    speed = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (jnp.arange(inputs.shape[1], dtype=jnp.float32)[:, None] * speed[None])[None, :, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = inputs[..., :half], inputs[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
