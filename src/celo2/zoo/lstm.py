"""Linear layers and the LSTM whose rows are the tensors of a network, with the block that mixes them.

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

FORGET_BIAS = 1.0  # added when the gate is computed, no part of the stored bias


class LstmState(NamedTuple):
    """State of an LSTM, a row for each tensor.

    Attributes:
        hidden: `(rows, H)`.
        cell: `(rows, H)`.
    """

    hidden: Array
    cell: Array


def linear(theta: Theta, name: str, inputs: Array) -> Array:
    """`inputs @ w + b` over the last axis."""
    weight, bias = (jnp.asarray(theta[f"{name}/{part}"], inputs.dtype) for part in "wb")
    product = jnp.matmul(inputs, weight, precision=jax.lax.Precision.HIGHEST)
    return product + bias.reshape((1,) * (product.ndim - 1) + bias.shape)


def initial_rows(theta: Theta, count: int, dtype: jnp.dtype) -> LstmState:
    """The learned start in each of `count` rows."""
    parts = (jnp.asarray(theta[f"lstm_init_state/{part}"], dtype) for part in LstmState._fields)
    return LstmState(*(jnp.broadcast_to(part, (count, part.shape[-1])) for part in parts))


def lstm(theta: Theta, inputs: Array, state: LstmState) -> LstmState:
    """One step of the cell; its output is the new `hidden`.

    Args:
        theta: With `rnn_params/rnn/linear`.
        inputs: `(rows, inputs)`.
        state: Of the step before.
    """
    gates = linear(theta, "rnn_params/rnn/linear", jnp.concatenate([inputs, state.hidden], axis=-1))
    write, candidate, keep, read = jnp.split(gates, 4, axis=-1)
    kept = jax.nn.sigmoid(keep + FORGET_BIAS) * state.cell
    cell = kept + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return LstmState(jax.nn.sigmoid(read) * jnp.tanh(cell), cell)


def mix(theta: Theta, inputs: Array) -> Array:
    """What the LSTM of Celo, Celo-Adam and VeLO reads: `(rows, F)` → `(rows, H)`.

    Each row gets the largest of all rows' `relu(linear_1)` on top of its own `linear_2`.
    """
    shared = jnp.max(jax.nn.relu(linear(theta, "rnn_params/linear_1", inputs)), axis=0, keepdims=True)
    return linear(theta, "rnn_params/linear_2", inputs) + shared
