"""The decoder of the published transformer language models: pre-layer-norm, without positional embeddings.

Without them, only causality distinguishes a token from the one before it.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.language.stdlib_text import PAD
from celo2.tasks.nn import LAYER_NORM_EPS


class TransformerLM(nn.Module):
    """Transformer language model, tokens `(N, T)` int32 → logits of the next token `(N, T, vocabulary)`.

    Dropout is always on and needs a key: `rngs={"dropout": key}`.

    Attributes:
        vocabulary: Number of tokens.
        width: Width of the residual stream.
        num_heads: Number of attention heads.
        head_size: Width of a head; the heads' total width may differ from the stream's.
        num_layers: Blocks of attention and MLP.
        dropout: Probability of dropping an output of a block, in [0, 1).
    """

    vocabulary: int
    width: int
    num_heads: int
    head_size: int
    num_layers: int
    dropout: float

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Computes the logits."""
        embed = nn.Embed(
            self.vocabulary,
            self.width,
            embedding_init=nn.initializers.truncated_normal(1.0),
            name="embedding",
        )
        stream = embed(tokens)
        length = tokens.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        readable = causal[None, None] & (tokens != PAD)[:, None, None]  # (N, 1, query, key)
        for index in range(self.num_layers):
            block = Block(
                self.num_heads, self.head_size, self.num_layers, self.dropout, name=f"block_{index}"
            )
            stream = block(stream, readable)
        head_init = nn.initializers.truncated_normal(1 / math.sqrt(self.width))
        head = nn.Dense(self.vocabulary, kernel_init=head_init, name="head")
        return head(_layer_norm("final_norm")(stream))


class Block(nn.Module):
    """`x + drop(attention(norm(x)))`, then `x + drop(mlp(norm(x)))`: `(N, T, width)` → the same.

    Attributes:
        num_heads: Attention heads.
        head_size: Width of a head.
        num_layers: Blocks of the network, by which the initial kernels are scaled.
        dropout: Probability of dropping an output, in [0, 1).
    """

    num_heads: int
    head_size: int
    num_layers: int
    dropout: float

    @nn.compact
    def __call__(self, stream: Array, readable: Array) -> Array:
        """Applies attention and the MLP; `readable` masks the keys of each query, `(N, 1, T, T)` bool."""
        drop = nn.Dropout(self.dropout, deterministic=False)
        attention = Attention(self.num_heads, self.head_size, self.num_layers, name="attention")
        stream = stream + drop(attention(_layer_norm("attention_norm")(stream), readable))
        hidden = MLP(self.num_layers, name="mlp")(_layer_norm("mlp_norm")(stream))
        return stream + drop(hidden)


class Attention(nn.Module):
    """Multi-head attention whose head size is independent of the width: `(N, T, width)` → the same.

    Attributes:
        num_heads: Attention heads.
        head_size: Width of a head.
        num_layers: Blocks of the network, by which the initial kernels are scaled.
    """

    num_heads: int
    head_size: int
    num_layers: int

    @nn.compact
    def __call__(self, inputs: Array, readable: Array) -> Array:
        """Applies softmax(query · key / √head_size) over readable keys to the values."""
        count, length, width = inputs.shape
        query, key, value = (
            _dense(self.num_heads * self.head_size, self.num_layers, name)(inputs).reshape(
                count, length, self.num_heads, self.head_size
            )
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value, mask=readable)
        return _dense(width, self.num_layers, "output")(mixed.reshape(count, length, -1))


class MLP(nn.Module):
    """Linear to four times the width, GELU, linear back: `(N, T, width)` → the same.

    Attributes:
        num_layers: Blocks of the network, by which the initial kernels are scaled.
    """

    num_layers: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layer."""
        width = inputs.shape[-1]
        hidden = nn.gelu(_dense(4 * width, self.num_layers, "up")(inputs), approximate=True)
        return _dense(width, self.num_layers, "down")(hidden)


def _dense(size: int, num_layers: int, name: str) -> nn.Dense:
    """Makes a linear layer whose initial kernel has variance 2 / (num_layers · inputs)."""
    init = nn.initializers.variance_scaling(2 / num_layers, "fan_in", "truncated_normal")
    return nn.Dense(size, kernel_init=init, name=name)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, use_fast_variance=False, name=name)
