"""The decoder of the published transformer language models: pre-layer-norm, and no positions at all.

Without positions, causality alone tells a token from the one before it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.language.stdlib_text import PAD
from celo2.tasks.nn import LAYER_NORM_EPS

if TYPE_CHECKING:
    from celo2.tasks.language.published_transformer import TransformerLMConfig


class TransformerLM(nn.Module):
    """Logits of the next token: `(N, T)` int32 → `(N, T, vocabulary)`.

    Its random numbers are those of dropout, which is never off: `rngs={"dropout": key}`.

    Attributes:
        config: The sizes.
    """

    config: TransformerLMConfig

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Computes the logits."""
        config = self.config
        embed = nn.Embed(
            config.vocabulary,
            config.width,
            embedding_init=nn.initializers.truncated_normal(1.0),
            name="embedding",
        )
        stream = embed(tokens)
        length = tokens.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        readable = causal[None, None] & (tokens != PAD)[:, None, None]  # (N, 1, query, key)
        for index in range(config.num_layers):
            stream = Block(config, name=f"block_{index}")(stream, readable)
        head_init = nn.initializers.truncated_normal(1 / math.sqrt(config.width))
        head = nn.Dense(config.vocabulary, kernel_init=head_init, name="head")
        return head(_layer_norm("final_norm")(stream))


class Block(nn.Module):
    """`x + drop(attention(norm(x)))`, then `x + drop(mlp(norm(x)))`: `(N, T, width)` → the same."""

    config: TransformerLMConfig

    @nn.compact
    def __call__(self, stream: Array, readable: Array) -> Array:
        """Computes both halves; `readable` says which query reads which key, `(N, 1, T, T)`."""
        drop = nn.Dropout(self.config.dropout, deterministic=False)
        mixed = Attention(self.config, name="attention")(_layer_norm("attention_norm")(stream), readable)
        stream = stream + drop(mixed)
        hidden = MLP(self.config, name="mlp")(_layer_norm("mlp_norm")(stream))
        return stream + drop(hidden)


class Attention(nn.Module):
    """Heads of a size of their own, whatever the width: `(N, T, width)` → the same."""

    config: TransformerLMConfig

    @nn.compact
    def __call__(self, inputs: Array, readable: Array) -> Array:
        """Softmax of query · key over √head_size, among the keys that a query may read."""
        config = self.config
        count, length, width = inputs.shape
        query, key, value = (
            _dense(config, config.num_heads * config.head_size, name)(inputs).reshape(
                count, length, config.num_heads, config.head_size
            )
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value, mask=readable)
        return _dense(config, width, "output")(mixed.reshape(count, length, -1))


class MLP(nn.Module):
    """Linear to four times the width, GELU, linear back: `(N, T, width)` → the same."""

    config: TransformerLMConfig

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Computes the layer."""
        width = inputs.shape[-1]
        return _dense(self.config, width, "down")(
            nn.gelu(_dense(self.config, 4 * width, "up")(inputs), approximate=True)
        )


def _dense(config: TransformerLMConfig, size: int, name: str) -> nn.Dense:
    """A linear layer of variance 2 / layers / inputs."""
    init = nn.initializers.variance_scaling(2 / config.num_layers, "fan_in", "truncated_normal")
    return nn.Dense(size, kernel_init=init, name=name)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, use_fast_variance=False, name=name)
