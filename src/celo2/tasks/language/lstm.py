"""The published recurrent language model: embedding, one LSTM with trained initial states, head."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from celo2.tasks.language.published_lstm import RNNLMConfig


class LSTMLM(nn.Module):
    """Logits of the next token: `(N, T)` int32 → `(N, T, vocabulary)`.

    Attributes:
        config: The sizes.
    """

    config: RNNLMConfig

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Computes the logits."""
        config = self.config
        embed = nn.Embed(
            config.vocabulary,
            config.embedding_size,
            embedding_init=nn.initializers.truncated_normal(1.0),
            name="embedding",
        )
        hidden = LSTM(config.hidden_size, name="lstm")(embed(tokens))
        head_init = nn.initializers.truncated_normal(1 / math.sqrt(config.hidden_size))
        return nn.Dense(config.vocabulary, kernel_init=head_init, name="head")(hidden)


class LSTM(nn.Module):
    """`(N, T, inputs)` → `(N, T, size)`.

    One linear map of `[input, hidden]` gives the gates i, g, f, o, in this order:
    `c ← σ(f + 1) c + σ(i) tanh(g)`, `h ← σ(o) tanh(c)`. Every sequence starts from the same h and c,
    parameters that are zero at first.

    Attributes:
        size: Of h and c.
    """

    size: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Computes h at every position; the inputs' part of the gates at once, before the recurrence."""
        count, _, num_in = inputs.shape
        kernel_init = nn.initializers.truncated_normal(1 / math.sqrt(num_in + self.size))
        kernel = self.param("kernel", kernel_init, (num_in + self.size, 4 * self.size))
        bias = self.param("bias", nn.initializers.zeros, (4 * self.size,))
        hidden, cell = (
            jnp.tile(self.param(name, nn.initializers.zeros, (1, self.size)), (count, 1))
            for name in ("initial_hidden", "initial_cell")
        )
        from_inputs = inputs @ kernel[:num_in] + bias[None, None]

        def step(state: tuple[Array, Array], gates_from_input: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = state
            gates = gates_from_input + hidden @ kernel[num_in:]
            enter, candidate, forget, leave = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget + 1.0) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), hidden

        _, outputs = jax.lax.scan(step, (hidden, cell), from_inputs.swapaxes(0, 1))
        return outputs.swapaxes(0, 1)
