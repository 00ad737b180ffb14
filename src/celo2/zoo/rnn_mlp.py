"""RNN-MLP: a per-tensor LSTM and a per-parameter network that exchange messages.

Source: the public code of learned_optimization, its origin, and of Celo (arXiv 2501.12670).

    p ← p - 0.001 o₀ exp(0.001 o₁)

The network (54 → 32 → 32 → 18) sees the entry, the time and 17 numbers from the tensor's LSTM; the mean of
its outputs o₂ … o₁₇ over the tensor, and the mean over all tensors of 18 numbers from their LSTMs, are inputs
of the LSTM at the next step. Gradients are clipped to ten times a running size. Validation losses are also
accepted.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.jax import accumulators as accumulators_lib
from celo2.jax.accumulators import Leaf
from celo2.zoo.adafac_mlp import TIMES
from celo2.zoo.features import NORM_EPS, PRE_STEP, RMS_EPS
from celo2.zoo.loss_features import (
    LOG_EPS,
    Moments,
    bounded_log,
    init_moments,
    training_features,
    update_moments,
)
from celo2.zoo.lstm import LstmState, Theta, initial_rows, linear, lstm
from celo2.zoo.rule import Decays, Outcome, Rule, Step
from celo2.zoo.specs import RnnMlp

_DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
DECAYS = Decays(_DECAYS, _DECAYS)
TRAIN_DECAY, VALID_DECAY = 0.9, 0.95  # decays of the losses' moments
EXP_MULT = 0.001
CLIP_FACTOR, CLIP_DECAY, CLIP_START, CLIP_EPS = 10.0, 0.99, 0.01, 1e-8
NUM_AXES = 4  # axes of a tensor whose lengths the LSTM reads


class RnnMlpState(NamedTuple):
    """State of RNN-MLP besides its accumulators.

    Attributes:
        lstm: The LSTM's state, one row per tensor.
        from_mlp: The message of each tensor's network to its LSTM, `(tensors, 16)`.
        from_lstm: The message shared among all LSTM rows, `(18,)`.
        train: Moments of the training loss.
        valid: Moments of the validation loss.
        clip_size: The running size of the gradients, a scalar.
        clip_count: One plus the number of gradients in that size, int32.
    """

    lstm: LstmState
    from_mlp: Array
    from_lstm: Array
    train: Moments
    valid: Moments
    clip_size: Array
    clip_count: Array


def _init(theta: Theta, config: RnnMlp, tensors: int, dtype: jnp.dtype) -> RnnMlpState:  # noqa: ARG001
    told, tells = (jnp.asarray(theta[f"initial_from_{name}"], dtype) for name in ("lstm", "mlp"))
    return RnnMlpState(
        initial_rows(theta, tensors, dtype),
        jnp.broadcast_to(tells, (tensors, *tells.shape)),
        told,
        init_moments(dtype),
        init_moments(dtype),
        jnp.asarray(CLIP_START, dtype),
        jnp.ones((), jnp.int32),
    )


def _update(theta: Theta, config: RnnMlp, step: Step) -> Outcome:  # noqa: ARG001
    memory: RnnMlpState = step.memory
    if step.is_valid:
        valid = update_moments(memory.valid, step.loss, VALID_DECAY)
        unchanged = [leaf.accumulators for leaf in step.leaves]
        return Outcome(
            [jnp.zeros_like(leaf.param) for leaf in step.leaves], unchanged, memory._replace(valid=valid)
        )
    train = update_moments(memory.train, step.loss, TRAIN_DECAY)
    features = training_features(train, TRAIN_DECAY, step.loss, memory.valid, VALID_DECAY)
    grads, memory = _clip([leaf.grad for leaf in step.leaves], memory._replace(train=train))
    leaves = [
        Leaf(grad, leaf.param, accumulators_lib.update_full(leaf.accumulators, grad, DECAYS))
        for grad, leaf in zip(grads, step.leaves, strict=True)
    ]
    inputs = [
        jnp.concatenate([memory.from_lstm, told, _statistics(leaf, features)])
        for leaf, told in zip(leaves, memory.from_mlp, strict=True)
    ]
    rows = lstm(theta, jnp.stack(inputs), memory.lstm)
    to_ff = linear(theta, "rnn_to_ff_params/rnn_to_ff", rows.hidden)
    moved = [_apply_mlp(theta, leaf, told, step) for leaf, told in zip(leaves, to_ff, strict=True)]
    memory = memory._replace(
        lstm=rows,
        from_lstm=jnp.mean(linear(theta, "rnn_to_in_params/rnn_to_in", rows.hidden), axis=0),
        from_mlp=jnp.stack([told for _, told in moved]),
    )
    return Outcome([change for change, _ in moved], [leaf.accumulators for leaf in leaves], memory)


def _clip(grads: list[Array], memory: RnnMlpState) -> tuple[list[Array], RnnMlpState]:
    """Clips gradients to ten times their running size, one bound for all, and updates that size."""
    seen = memory.clip_count.astype(memory.clip_size.dtype)
    bound = CLIP_FACTOR * memory.clip_size / (1.0 - CLIP_DECAY**seen)
    grads = [jnp.clip(grad, -bound, bound) for grad in grads]
    square = jnp.mean(jnp.stack([jnp.mean(jnp.square(grad)) for grad in grads]))
    size = CLIP_DECAY * memory.clip_size + (1.0 - CLIP_DECAY) * jnp.sqrt(CLIP_EPS + square)
    return grads, memory._replace(clip_size=size, clip_count=memory.clip_count + 1)


def _statistics(leaf: Leaf, loss_features: Array) -> Array:
    """Returns 18 statistics of one tensor, from its new accumulators and old parameter."""
    grad, param, accumulators = leaf
    momentum, rms = jnp.stack(accumulators.momentum), jnp.stack(accumulators.rms)
    means = jnp.stack([jnp.mean(momentum), jnp.mean(rms), jnp.mean(param)])
    variances = jnp.stack([jnp.var(momentum), jnp.var(rms), jnp.var(param)])
    lengths = (*param.shape, *(1,) * NUM_AXES)[:NUM_AXES]
    is_scalar = 1.0 if param.ndim == 0 else -1.0
    return jnp.concatenate(
        [
            jnp.stack([bounded_log(_norm(grad)), jnp.asarray(is_scalar, grad.dtype)]),
            jnp.stack([bounded_log(means), jnp.sign(means)], axis=1).ravel(),
            bounded_log(_norm(param))[None],
            jnp.log(jnp.asarray(lengths, grad.dtype)) - 1.0,
            loss_features,
            bounded_log(variances),
        ]
    )


def _apply_mlp(theta: Theta, leaf: Leaf, from_lstm: Array, step: Step) -> tuple[Array, Array]:
    """Returns the update of one tensor and its network's message to the LSTM."""
    param = leaf.param
    columns = jnp.stack([column.ravel() for column in _columns(leaf)], axis=-1)
    columns *= jax.lax.rsqrt(NORM_EPS + jnp.mean(jnp.square(columns), axis=0, keepdims=True))
    time = jnp.sin(step.count.astype(param.dtype) / (jnp.asarray(TIMES, param.dtype) * jnp.pi))
    facts = [jnp.log(len(step.leaves)) - 1.0, jnp.log(_norm(param) + LOG_EPS), jnp.log(param.size)]
    same = jnp.concatenate([time, jnp.stack([jnp.asarray(fact, param.dtype) for fact in facts]), from_lstm])
    hidden = jax.nn.relu(_first_layer(theta, columns, same))
    hidden = jax.nn.relu(linear(theta, "ffmod_params/mlp/~/linear_1", hidden))
    out = linear(theta, "ffmod_params/mlp/~/linear_2", hidden)
    change = -PRE_STEP * out[:, 0] * jnp.exp(EXP_MULT * out[:, 1])
    return change.reshape(param.shape), jnp.mean(out[:, 2:], axis=0)


def _first_layer(theta: Theta, columns: Array, same: Array) -> Array:
    """Applies the first layer, multiplying inputs shared by all entries only once."""
    weight = jnp.asarray(theta["ffmod_params/mlp/~/linear_0/w"], columns.dtype)
    bias = jnp.asarray(theta["ffmod_params/mlp/~/linear_0/b"], columns.dtype)
    split = columns.shape[-1]
    shared = bias + jnp.matmul(same, weight[split:], precision="highest")
    return jnp.matmul(columns, weight[:split], precision="highest") + shared[None]


def _columns(leaf: Leaf) -> list[Array]:
    """Returns the 23 inputs per entry that are normalised over the tensor."""
    grad, param, accumulators = leaf
    momentum, rms = accumulators.momentum, accumulators.rms
    inverse = [jax.lax.rsqrt(value + RMS_EPS) for value in rms]
    normalized = [value * root for value, root in zip(momentum, inverse, strict=True)]
    return [grad, param, jnp.log(jnp.abs(param) + LOG_EPS), *momentum, *rms, *normalized, *inverse]


def _norm(array: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(array)))


RULE = Rule(DECAYS, _init, _update)
