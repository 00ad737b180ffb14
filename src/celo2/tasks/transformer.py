"""A small causal transformer on bytes: pre-layer-norm, learned positions, untied head."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Params, Task
from celo2.tasks.layers import (
    Initial,
    accuracy,
    cross_entropy,
    layer_norm,
    layer_norm_template,
    linear,
    linear_template,
    sample_params,
)
from celo2.tasks.text import load_stdlib_text

__all__ = ["TransformerConfig", "compute_logits", "init_transformer", "make_tiny_lm"]

VOCABULARY = 256  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer.

    Attributes:
        width: Of the residual stream, a multiple of `num_heads`.
        num_layers: Blocks of attention and MLP, ≥ 1.
        num_heads: Attention heads.
        context: Longest input in tokens.
        mlp_ratio: Hidden width of the MLP over `width`.

    Raises:
        ValueError: A size is below 1, or `width` is not a multiple of `num_heads`.
    """

    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    context: int = 64
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1, got {getattr(self, field.name)}.")
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads ({self.num_heads}), got {self.width}.")


def init_transformer(key: Array, config: TransformerConfig) -> Params:
    """Parameters `embedding`, `positions`, `block_0`, …, `final_norm`, `head`.

    The head's scale is 1/width instead of 1/√width: the first logits are near zero, and the first
    loss is ln 256.
    """
    width = config.width
    blocks = {f"block_{index}": _block_template(config) for index in range(config.num_layers)}
    template = {
        "embedding": {"table": Initial((VOCABULARY, width), scale=1 / math.sqrt(width))},
        "positions": {"table": Initial((config.context, width), scale=1 / math.sqrt(width))},
        **blocks,
        "final_norm": layer_norm_template(width),
        "head": linear_template(width, VOCABULARY, scale=1 / width),
    }
    return sample_params(key, template)


def _block_template(config: TransformerConfig) -> dict[str, Any]:
    width, hidden = config.width, config.mlp_ratio * config.width
    residual = 1 / math.sqrt(2 * config.num_layers)  # so that the depth leaves the stream's size alone
    return {
        "attention_norm": layer_norm_template(width),
        "attention": {
            "query": linear_template(width, width),
            "key": linear_template(width, width),
            "value": linear_template(width, width),
            "output": linear_template(width, width, scale=residual / math.sqrt(width)),
        },
        "mlp_norm": layer_norm_template(width),
        "mlp": {
            "up": linear_template(width, hidden),
            "down": linear_template(hidden, width, scale=residual / math.sqrt(hidden)),
        },
    }


def compute_logits(params: Params, tokens: Array, config: TransformerConfig) -> Array:
    """Scores of the next byte at every position.

    Args:
        params: From `init_transformer`.
        tokens: `(N, T)` integers in `[0, 256)`, T ≤ `config.context`.
        config: The sizes that `params` was made with.

    Returns:
        `(N, T, 256)` float32.
    """
    positions = params["positions"]["table"][None, : tokens.shape[1]]
    stream = params["embedding"]["table"][tokens] + positions
    for index in range(config.num_layers):
        block = params[f"block_{index}"]
        stream = stream + _attend(
            block["attention"], layer_norm(block["attention_norm"], stream), config.num_heads
        )
        hidden = jax.nn.gelu(linear(block["mlp"]["up"], layer_norm(block["mlp_norm"], stream)))
        stream = stream + linear(block["mlp"]["down"], hidden)
    return linear(params["head"], layer_norm(params["final_norm"], stream))


def _attend(params: Params, inputs: Array, num_heads: int) -> Array:
    """Causal attention with logits over √head_size: `(N, T, width)` → the same."""
    count, length, width = inputs.shape
    query, key, value = (
        linear(params[name], inputs).reshape(count, length, num_heads, width // num_heads)
        for name in ("query", "key", "value")
    )
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return linear(params["output"], mixed.reshape(count, length, width))


def make_tiny_lm(
    *, config: TransformerConfig | None = None, batch_size: int = 16, max_bytes: int = 8_000_000
) -> Task:
    """A language model on the bytes of the standard library's source: two layers, 137,216 parameters.

    The loss is the mean cross-entropy of the next byte, in nats.

    Args:
        config: The transformer's sizes; None: the defaults.
        batch_size: Rows of `context` + 1 bytes in a training batch.
        max_bytes: Most bytes of text, see `load_stdlib_text`.
    """
    config = TransformerConfig() if config is None else config

    def logits_and_targets(params: Params, batch: Batch) -> tuple[Array, Array]:
        tokens = batch["text"].astype(jnp.int32)
        return compute_logits(params, tokens[:, :-1], config), tokens[:, 1:]

    return Task(
        name="tiny-lm",
        dataset=load_stdlib_text(config.context + 1, max_bytes=max_bytes),
        init=partial(init_transformer, config=config),
        loss=lambda params, batch: cross_entropy(*logits_and_targets(params, batch)),
        accuracy=lambda params, batch: accuracy(*logits_and_targets(params, batch)),
        batch_size=batch_size,
        initial_loss=math.log(VOCABULARY),
    )
