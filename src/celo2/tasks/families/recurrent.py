"""Byte-level recurrent networks.

The cell is the LSTM of the published tasks (Haiku's): one linear map of `[input, hidden]` to the gates
i, g, f, o, and `c ← σ(f + 1) c + σ(i) tanh(g)`, `h ← σ(o) tanh(c)`. The first h and c are trained.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Params
from celo2.tasks.families._text import TextFamily
from celo2.tasks.layers import Initial, linear, linear_template, sample_params
from celo2.tasks.transformer import VOCABULARY

__all__ = ["RecurrentFamily"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentFamily(TextFamily):
    """An LSTM of 16 units on vectors of 16 numbers; 10,592 parameters, most of them the bytes' vectors.

    Attributes:
        width: Units, and numbers in a byte's vector.
    """

    width: int = 16

    def init_params(self, key: Array) -> Params:
        """Untrained network: `embedding`, `cell`, `start`, `head`."""
        template = {
            "embedding": {"table": Initial((VOCABULARY, self.width), scale=1 / math.sqrt(self.width))},
            "cell": linear_template(2 * self.width, 4 * self.width),
            "start": {"hidden": Initial((1, self.width)), "memory": Initial((1, self.width))},
            "head": linear_template(self.width, VOCABULARY),
        }
        return sample_params(key, template)

    def compute_logits(self, params: Params, tokens: Array) -> Array:
        """Scores of the next byte."""

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
