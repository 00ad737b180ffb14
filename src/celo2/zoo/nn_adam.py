"""NN-Adam: Adam whose learning rate, two decays and epsilon are set per tensor by an LSTM.

Source: the public code of learned_optimization, its origin, and of Celo (arXiv 2501.12670).

    p ← p - lr (1 + ε) m / (ε + sqrt(v + 1e-10))                 no bias correction; large ε: momentum SGD

The four numbers are stored as logarithms x. After each step, 0.01 × the LSTM's outputs are added to them:

    lr = clip(e^{10x}, 1e-8, 1e3),   β = 1 - e^{clip(10x, -10, 0)},   ε = clip(e^{10x}, 1e-11, 1e4)
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from celo2.jax import accumulators as accumulators_lib
from celo2.jax.accumulators import Leaf
from celo2.zoo.celo_adam import adam_direction
from celo2.zoo.loss_features import half_log
from celo2.zoo.lstm import LstmState, Theta, initial_rows, linear, lstm
from celo2.zoo.rule import Decays, Outcome, Rule, Step
from celo2.zoo.specs import NnAdam

NAMES = ("lr", "beta1", "beta2", "epsilon")  # in this order everywhere
OUTPUT_SCALE = 0.01
SCALE = 10.0  # factor of the logarithms
LR_RANGE, EPSILON_RANGE = (1e-8, 1e3), (1e-11, 1e4)
LOG_BETA_RANGE = (-10.0, 0.0)  # of log(1 - β)
INPUT_SCALE, INPUT_BOUND = 0.2, 5.0  # of the four numbers as inputs


class NnAdamState(NamedTuple):
    """State of NN-Adam besides its accumulators.

    Attributes:
        lstm: The LSTM's state, one row per tensor.
        scalars: Logarithms of learning rate, 1 - β1, 1 - β2 and ε, `(tensors, 4)`.
    """

    lstm: LstmState
    scalars: Array


def _init(theta: Theta, config: NnAdam, tensors: int, dtype: jnp.dtype) -> NnAdamState:  # noqa: ARG001
    scalars = jnp.broadcast_to(_start(theta, dtype), (tensors, len(NAMES)))
    return NnAdamState(initial_rows(theta, tensors, dtype), scalars)


def _update(theta: Theta, config: NnAdam, step: Step) -> Outcome:
    rates = _decode(step.memory.scalars)
    changes, states, rows = [], [], []
    for leaf, (rate, beta1, beta2, eps), scalars in zip(step.leaves, rates, step.memory.scalars, strict=True):
        grad = accumulators_lib.clip(leaf.grad)
        state = accumulators_lib.update_full(leaf.accumulators, grad, Decays((beta1,), (beta2,)))
        changes.append(-rate * (1.0 + eps) * adam_direction(state.momentum[0], state.rms[0], eps))
        states.append(state)
        rows.append(_inputs(Leaf(grad, leaf.param, state), scalars))
    new = lstm(theta, jnp.stack(rows), step.memory.lstm)
    shift = OUTPUT_SCALE * linear(theta, "rnn_to_controls_params/rnn_to_controls", new.hidden)
    scalars = step.memory.scalars + shift
    scalars -= config.decay_strength * (scalars - _start(theta, scalars.dtype)[None])
    return Outcome(changes, states, NnAdamState(new, _encode(_decode(scalars))))


def _start(theta: Theta, dtype: jnp.dtype) -> Array:
    return jnp.stack([jnp.asarray(theta[f"per_layer_{name}"], dtype) for name in NAMES])


def _decode(scalars: Array) -> Array:
    """Converts logarithms to learning rate, β1, β2 and ε, on the last axis."""
    rate, beta1, beta2, eps = jnp.moveaxis(SCALE * scalars, -1, 0)
    betas = (1.0 - jnp.exp(jnp.clip(beta, *LOG_BETA_RANGE)) for beta in (beta1, beta2))
    return jnp.stack(
        [jnp.clip(jnp.exp(rate), *LR_RANGE), *betas, jnp.clip(jnp.exp(eps), *EPSILON_RANGE)], axis=-1
    )


def _encode(values: Array) -> Array:
    """Inverts `_decode`; applying both clips the logarithms to their ranges."""
    rate, beta1, beta2, eps = jnp.moveaxis(values, -1, 0)
    return jnp.log(jnp.stack([rate, 1.0 - beta1, 1.0 - beta2, eps], axis=-1)) / SCALE


def _inputs(leaf: Leaf, scalars: Array) -> Array:
    """Returns 19 inputs per tensor: old parameter, clipped gradient, new accumulators, current scalars."""
    grad, param, accumulators = leaf
    (momentum,), (rms,) = accumulators.momentum, accumulators.rms
    rate, beta1, beta2, eps = INPUT_SCALE * jnp.clip(scalars, -INPUT_BOUND, INPUT_BOUND)
    kinds = jnp.asarray([1.0 if param.ndim == rank else -1.0 for rank in (1, 0)], grad.dtype)
    means = jnp.stack([jnp.mean(array) for array in (grad, momentum, param, rms)])
    variances = jnp.stack([jnp.var(array) for array in (grad, momentum, param, rms)])
    pairs = jnp.stack([half_log(means), jnp.sign(means)], axis=1).ravel()
    size = half_log(jnp.mean(jnp.abs(grad)))[None]
    return jnp.concatenate(
        [jnp.stack([beta1, beta2, eps]), kinds, rate[None], pairs[:2], size, pairs[2:], half_log(variances)]
    )


RULE = Rule(Decays((0.0,), (0.0,)), _init, _update)
