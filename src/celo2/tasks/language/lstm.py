"""The published recurrent language model: embedding, one LSTM with trained initial state, head."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class LSTMLM(nn.Module):
    """LSTM language model, tokens `(N, T)` int32 → logits of the next token `(N, T, vocabulary)`.

    Attributes:
        vocabulary: Number of tokens.
        embedding_size: Width of a token's vector.
        hidden_size: Width of the LSTM's state.
    """

    vocabulary: int
    embedding_size: int
    hidden_size: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Computes the logits."""
        embed = nn.Embed(
            self.vocabulary,
            self.embedding_size,
            embedding_init=nn.initializers.truncated_normal(1.0),
            name="embedding",
        )
        hidden = LSTM(self.hidden_size, name="lstm")(embed(tokens))
        head_init = nn.initializers.truncated_normal(1 / math.sqrt(self.hidden_size))
        return nn.Dense(self.vocabulary, kernel_init=head_init, name="head")(hidden)


class LSTM(nn.Module):
    """LSTM layer, `(N, T, inputs)` → `(N, T, size)`.

    One linear map of `[input, hidden]` computes the gates i, g, f, o, in this order:
    `c ← σ(f + 1) c + σ(i) tanh(g)`, `h ← σ(o) tanh(c)`. Every sequence starts from the same h and c,
    which are parameters, initially zero.

    Attributes:
        size: Width of h and c.
    """

    size: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Computes h at every position; the input part of all gates is computed before the recurrence."""
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
