"""Linear layers, an LSTM with one row per tensor of a network, and the block that mixes the rows.

Source: the public code of VeLO (arXiv 2211.09760) and Celo (arXiv 2501.12670).

    [i | a | f | o] = [x | h] W + b,    c' = σ(f + 1) c + σ(i) tanh a,    h' = σ(o) tanh c'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Theta = Mapping[str, Any]  # arrays by name

FORGET_BIAS = 1.0  # added when the gate is computed; not part of the stored bias


class LstmState(NamedTuple):
    """State of an LSTM, one row per tensor.

    Attributes:
        hidden: The output, `(rows, H)`.
        cell: The cell state, `(rows, H)`.
    """

    hidden: Array
    cell: Array


def linear(theta: Theta, name: str, inputs: Array) -> Array:
    """Returns `inputs @ w + b` over the last axis."""
    weight, bias = (jnp.asarray(theta[f"{name}/{part}"], inputs.dtype) for part in "wb")
    product = jnp.matmul(inputs, weight, precision=jax.lax.Precision.HIGHEST)
    return product + bias.reshape((1,) * (product.ndim - 1) + bias.shape)


def initial_rows(theta: Theta, count: int, dtype: jnp.dtype) -> LstmState:
    """Returns the learned initial state in each of `count` rows."""
    parts = (jnp.asarray(theta[f"lstm_init_state/{part}"], dtype) for part in LstmState._fields)
    return LstmState(*(jnp.broadcast_to(part, (count, part.shape[-1])) for part in parts))


def lstm(theta: Theta, inputs: Array, state: LstmState) -> LstmState:
    """Returns the state after one step of the cell; its output is the new `hidden`.

    Args:
        theta: Arrays by name, among them those of `rnn_params/rnn/linear`.
        inputs: The inputs, `(rows, inputs)`.
        state: The state after the previous step.
    """
    gates = linear(theta, "rnn_params/rnn/linear", jnp.concatenate([inputs, state.hidden], axis=-1))
    write, candidate, keep, read = jnp.split(gates, 4, axis=-1)
    kept = jax.nn.sigmoid(keep + FORGET_BIAS) * state.cell
    cell = kept + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return LstmState(jax.nn.sigmoid(read) * jnp.tanh(cell), cell)


def mix(theta: Theta, inputs: Array) -> Array:
    """Mixes the rows for the LSTM of Celo, Celo-Adam and VeLO: `(rows, F)` → `(rows, H)`.

    Adds the maximum over all rows of `relu(linear_1)` to each row's own `linear_2`.
    """
    shared = jnp.max(jax.nn.relu(linear(theta, "rnn_params/linear_1", inputs)), axis=0, keepdims=True)
    return linear(theta, "rnn_params/linear_2", inputs) + shared
