"""Text families: transformers and LSTMs that predict the next byte of a text."""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Params
from celo2.tasks.families.base import UNTRAINED_LOSS, TaskFamily, TextData
from celo2.tasks.language.tiny_lm import (
    VOCABULARY,
    TransformerConfig,
    compute_logits,
    init_transformer,
)
from celo2.tasks.nn import (
    Initial,
    cross_entropy,
    linear,
    linear_template,
    sample_params,
)

_PER_NAT = UNTRAINED_LOSS / math.log(VOCABULARY)  # rescales the loss: log(256) becomes log(10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFamily(TaskFamily):
    """Base class of byte-level models; a batch predicts `batch_size` bytes, in rows of `context`.

    Attributes:
        context: Number of input bytes in a row.
    """

    context: int = 16
    source = "text"

    @abc.abstractmethod
    def compute_logits(self, params: Params, tokens: Array) -> Array:
        """Computes the scores of the next byte: `(rows, context)` int32 → `(rows, context, 256)`."""

    def sample_draw(self, key: Array, data: TextData, set_index: Array) -> Array:
        """Draws the index of each row's first byte in one text: `(rows, 1)` int32, at least one row."""
        num_rows = max(1, self.batch_size // self.context)
        start = jax.random.randint(key, (num_rows, 1), 0, data.sizes[set_index] - self.context)
        return data.offsets[set_index] + start

    def make_batch(self, draw: Array, data: TextData) -> Batch:
        """Makes the rows: `(rows, context + 1)` int32."""
        return data.text[draw + jnp.arange(self.context + 1)[None]].astype(jnp.int32)

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Computes the mean cross-entropy of the next byte over log(256), times log(10)."""
        return _PER_NAT * cross_entropy(self.compute_logits(params, batch[:, :-1]), batch[:, 1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerFamily(TextFamily):
    """One causal block of width 16 with two heads; 10,960 parameters, most of them byte embeddings.

    Attributes:
        width: Width of the residual stream.
        num_heads: Number of attention heads.
    """

    width: int = 16
    num_heads: int = 2

    def init_params(self, key: Array) -> Params:
        """Draws an untrained transformer."""
        return init_transformer(key, self._config)

    def compute_logits(self, params: Params, tokens: Array) -> Array:
        """Computes the scores of the next byte."""
        return compute_logits(params, tokens, self._config)

    @property
    def _config(self) -> TransformerConfig:
        return TransformerConfig(
            width=self.width, num_layers=1, num_heads=self.num_heads, context=self.context, mlp_ratio=2
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentFamily(TextFamily):
    """An LSTM of 16 units on embeddings of width 16; 10,592 parameters, most of them embeddings.

    Attributes:
        width: Number of units, and width of a byte's embedding.
    """

    width: int = 16

    def init_params(self, key: Array) -> Params:
        """Draws an untrained network: `embedding`, `cell`, `start`, `head`."""
        template = {
            "embedding": {"table": Initial((VOCABULARY, self.width), scale=1 / math.sqrt(self.width))},
            "cell": linear_template(2 * self.width, 4 * self.width),
            "start": {"hidden": Initial((1, self.width)), "memory": Initial((1, self.width))},
            "head": linear_template(self.width, VOCABULARY),
        }
        return sample_params(key, template)

    def compute_logits(self, params: Params, tokens: Array) -> Array:
        """Computes the scores of the next byte."""

        def advance(carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, memory = carry
            gates = linear(params["cell"], jnp.concatenate([inputs, hidden], axis=-1))
            write, new, keep, read = jnp.split(gates, 4, axis=-1)
            memory = jax.nn.sigmoid(keep + 1.0) * memory + jax.nn.sigmoid(write) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(read) * jnp.tanh(memory)
            return (hidden, memory), hidden

        shape = (tokens.shape[0], self.width)
        hidden, memory = (jnp.broadcast_to(params["start"][name], shape) for name in ("hidden", "memory"))
        vectors = params["embedding"]["table"][tokens]
        _, states = jax.lax.scan(advance, (hidden, memory), jnp.moveaxis(vectors, 1, 0))
        return linear(params["head"], jnp.moveaxis(states, 0, 1))
