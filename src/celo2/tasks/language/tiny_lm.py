"""A small causal byte-level transformer: pre-layer-norm, learned positions, a separate or tied head."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.tasks.base import Batch, Dataset, Params, Task
from celo2.tasks.language.stdlib_text import load_pydoc_text, load_stdlib_text
from celo2.tasks.nn import (
    TRUNCATED_STD,
    Initial,
    accuracy,
    cross_entropy,
    layer_norm,
    layer_norm_template,
    linear,
    linear_template,
    sample_params,
)

VOCABULARY = 256  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer.

    Attributes:
        width: Width of the residual stream, a multiple of `num_heads`.
        num_layers: Number of blocks of attention and MLP, ≥ 1.
        num_heads: Number of attention heads.
        context: Maximum input length in tokens.
        mlp_ratio: Ratio of the MLP's hidden width to `width`.
        symbols: Number of tokens in the vocabulary, 2 to 256.
        tied: Whether the head is the embedding table, without a bias.
        init_scale: Initial standard deviation of every weight, as in GPT-2 (0.02); 0: by fan-in, see
        `init_transformer`.

    Raises:
        ValueError: A size is below 1, or `width` is not a multiple of `num_heads`.
    """

    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    context: int = 64
    mlp_ratio: int = 4
    symbols: int = VOCABULARY
    tied: bool = False
    init_scale: float = 0.0

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for name in ("width", "num_layers", "num_heads", "context", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 2 <= self.symbols <= VOCABULARY:
            raise ValueError(f"symbols must be from 2 to {VOCABULARY}, got {self.symbols}.")
        if not 0 <= self.init_scale < math.inf:
            raise ValueError(f"init_scale must be finite and not negative, got {self.init_scale}.")
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads ({self.num_heads}), got {self.width}.")


def init_transformer(key: Array, config: TransformerConfig) -> Params:
    """Draws parameters `embedding`, `positions`, `block_0`, …, `final_norm`, and, unless tied, `head`.

    The head, or the tied table, has scale 1/width instead of 1/√width: the first logits are near
    zero, and the first loss is ln 256.
    """
    width = config.width
    blocks = {f"block_{index}": _block_template(config) for index in range(config.num_layers)}
    table_scale = 1 / width if config.tied else 1 / math.sqrt(width)
    template = {
        "embedding": {"table": Initial((config.symbols, width), scale=table_scale)},
        "positions": {"table": Initial((config.context, width), scale=table_scale)},
        **blocks,
        "final_norm": layer_norm_template(width),
    }
    if not config.tied:
        template["head"] = linear_template(width, config.symbols, scale=1 / width)
    return sample_params(key, _rescale(template, config.init_scale) if config.init_scale else template)


def _rescale(template: Any, deviation: float) -> Any:
    """Returns the template with one standard deviation for every array that is not constant."""

    def rescale(initial: Initial) -> Initial:
        return dataclasses.replace(initial, scale=deviation / TRUNCATED_STD) if initial.scale else initial

    return jax.tree.map(rescale, template)


def _block_template(config: TransformerConfig) -> dict[str, Any]:
    width, hidden = config.width, config.mlp_ratio * config.width
    residual = 1 / math.sqrt(2 * config.num_layers)  # keeps the stream's scale independent of depth
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
    """Computes next-byte logits at every position.

    Args:
        params: From `init_transformer`.
        tokens: `(N, T)` integers in `[0, config.symbols)`, T ≤ `config.context`.
        config: The sizes with which `params` was made.

    Returns:
        `(N, T, config.symbols)` float32.
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
    stream = layer_norm(params["final_norm"], stream)
    return stream @ params["embedding"]["table"].T if config.tied else linear(params["head"], stream)


def _attend(params: Params, inputs: Array, num_heads: int) -> Array:
    """Applies causal attention with logits divided by √head_size: `(N, T, width)` → the same."""
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
    """Makes a language-modelling task on the standard library's bytes: two layers, 137,216 parameters.

    The loss is the mean cross-entropy of the next byte, in nats.

    Args:
        config: The transformer's sizes; None: the defaults.
        batch_size: Rows of `context` + 1 bytes in a training batch.
        max_bytes: Maximum bytes of text; see `load_stdlib_text`.
    """
    config = TransformerConfig() if config is None else config
    return _make_task(
        "tiny-lm", config, load_stdlib_text(config.context + 1, max_bytes=max_bytes), batch_size
    )


def make_byte_lm(*, text: str = "stdlib", batch_size: int = 16, **sizes: Any) -> Task:
    """Makes a byte-level transformer of any size on one of two texts available in every Python installation.

    Args:
        text: "stdlib" (source code) or "pydoc" (the English of Python's language reference).
        batch_size: Rows of `context` + 1 bytes in a training batch.
        **sizes: Options of `TransformerConfig`. With fewer than 256 `symbols`, the most frequent bytes of the
            training text get one each, and all others share the last: a small model then learns from
            the context rather than byte frequencies.

    Raises:
        ValueError: An unknown text, or incompatible sizes.
        TypeError: An unknown size.

    Example:
        >>> make_byte_lm(width=16, num_heads=2, num_layers=1, context=16, tied=True).batch_size
        16
    """
    loaders = {"stdlib": load_stdlib_text, "pydoc": load_pydoc_text}
    if text not in loaders:
        raise ValueError(f"unknown text {text!r}; there are {', '.join(loaders)}.")
    config = TransformerConfig(**sizes)
    dataset = loaders[text](config.context + 1)
    if config.symbols < VOCABULARY:
        dataset = _reduce_symbols(dataset, config.symbols)
    return _make_task("byte-lm", config, dataset, batch_size)


def _make_task(name: str, config: TransformerConfig, dataset: Dataset, batch_size: int) -> Task:
    def logits_and_targets(params: Params, batch: Batch) -> tuple[Array, Array]:
        tokens = batch["text"].astype(jnp.int32)
        return compute_logits(params, tokens[:, :-1], config), tokens[:, 1:]

    return Task(
        name=name,
        dataset=dataset,
        init=partial(init_transformer, config=config),
        loss=lambda params, batch: cross_entropy(*logits_and_targets(params, batch)),
        accuracy=lambda params, batch: accuracy(*logits_and_targets(params, batch)),
        batch_size=batch_size,
        initial_loss=math.log(config.symbols),
    )


def _reduce_symbols(dataset: Dataset, symbols: int) -> Dataset:
    """Maps the text's bytes to a number of symbols, rare bytes to the last."""
    counts = np.bincount(dataset.train["text"].ravel(), minlength=VOCABULARY)
    table = np.full(VOCABULARY, symbols - 1, np.uint8)
    table[np.argsort(-counts, kind="stable")[: symbols - 1]] = np.arange(symbols - 1)
    train, valid = ({"text": table[split["text"]]} for split in (dataset.train, dataset.valid))
    return dataclasses.replace(dataset, name=f"{dataset.name}-{symbols}", train=train, valid=valid)
