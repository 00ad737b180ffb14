"""Families that predict the next byte of a text."""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Params
from celo2.tasks.family import UNTRAINED_LOSS, TaskFamily, TextData
from celo2.tasks.layers import cross_entropy
from celo2.tasks.transformer import VOCABULARY

__all__ = ["TextFamily"]

_PER_NAT = UNTRAINED_LOSS / math.log(VOCABULARY)  # of the loss: log(256) becomes log(10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFamily(TaskFamily):
    """Models of the bytes of a text; a batch predicts `batch_size` bytes, in rows of `context`.

    Attributes:
        context: Bytes that a row reads.
    """

    context: int = 16
    source = "text"

    @abc.abstractmethod
    def compute_logits(self, params: Params, tokens: Array) -> Array:
        """Scores of the next byte: `(rows, context)` int32 → `(rows, context, 256)`."""

    def sample_draw(self, key: Array, data: TextData, set_index: Array) -> Array:
        """Where rows of one text begin: `(rows, 1)` int32, at least one row."""
        num_rows = max(1, self.batch_size // self.context)
        start = jax.random.randint(key, (num_rows, 1), 0, data.sizes[set_index] - self.context)
        return data.offsets[set_index] + start

    def make_batch(self, draw: Array, data: TextData) -> Batch:
        """The rows: `(rows, context + 1)` int32."""
        return data.text[draw + jnp.arange(self.context + 1)[None]].astype(jnp.int32)

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Mean cross-entropy of the next byte over log(256), times log(10)."""
        return _PER_NAT * cross_entropy(self.compute_logits(params, batch[:, :-1]), batch[:, 1:])
