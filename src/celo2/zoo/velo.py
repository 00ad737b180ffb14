"""VeLO: a per-tensor LSTM that mixes a learned rule from many and sets its step size.

Source: arXiv 2211.09760, and "velo" in the public code of Celo (arXiv 2501.12670).

    p ← p - λ S,   λ = step_size(h),   W = (ff_mult / N) Σ rnn_to_controls(h)_i W_i

with `S` from `celo2.zoo.features.step_mlp14` with the weights W, and h the tensor's row of the LSTM. Neither
λ nor the shares are bounded; λ may be negative. The LSTM sees the schedule's features and statistics of the
tensor's accumulators from before this step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.jax.accumulators import Leaf
from celo2.zoo import loss_features
from celo2.zoo.celo import accumulate, stacked_weights
from celo2.zoo.features import step_mlp14
from celo2.zoo.loss_features import half_log
from celo2.zoo.lstm import LstmState, Theta, initial_rows, linear, lstm, mix
from celo2.zoo.rule import STANDARD, Outcome, Rule, Step
from celo2.zoo.specs import Velo

NUM_RANKS = 5  # classes of the one-hot rank: 0 to 4 axes longer than 1
PARAM_FLOOR = 1e-9  # of the parameter's mean square
LOG_SCALE = 10.0  # factor of a statistic before its logarithm
BUGGED_HORIZON = 10.0  # of the loss features in the oldest published code


class VeloState(NamedTuple):
    """State of VeLO besides its accumulators: one LSTM row per tensor, and the means of the loss."""

    lstm: LstmState
    losses: loss_features.LossBuffer


def _init(theta: Theta, config: Velo, tensors: int, dtype: jnp.dtype) -> VeloState:  # noqa: ARG001
    return VeloState(initial_rows(theta, tensors, dtype), loss_features.init_buffer(dtype))


def _update(theta: Theta, config: Velo, step: Step) -> Outcome:
    rows, losses = _inputs(config, step)
    new = lstm(theta, mix(theta, rows), step.memory.lstm)
    shares = linear(theta, "rnn_params/rnn_to_controls", new.hidden) * (config.ff_mult / config.num_mlps)
    weights = {
        name: jnp.tensordot(shares, jnp.asarray(array, shares.dtype), axes=1, precision="highest")
        for name, array in stacked_weights(theta).items()
    }
    sizes = linear(theta, "rnn_params/step_size", new.hidden)[:, 0]
    leaves, changes = accumulate(step), []
    for index, (leaf, axes) in enumerate(zip(leaves, step.axes, strict=True)):
        own = {name: array[index] for name, array in weights.items()}
        changes.append(-sizes[index] * step_mlp14(own, leaf, axes))
    kept = step.memory.lstm if config.bugged_lstm_state else new
    return Outcome(changes, [leaf.accumulators for leaf in leaves], VeloState(kept, losses))


def _inputs(config: Velo, step: Step) -> tuple[Array, loss_features.LossBuffer]:
    """Returns the LSTM's inputs, `(tensors, 30)`, and the loss means updated with this step's loss."""
    horizon = BUGGED_HORIZON if config.bugged_loss_features else step.num_steps
    features, losses = loss_features.loss_features(step.memory.losses, step.loss, step.count, horizon)
    shared = jnp.concatenate(
        [loss_features.share_features(step.count, step.num_steps, step.loss.dtype), features]
    )
    return jnp.stack([jnp.concatenate([shared, _statistics(leaf)]) for leaf in step.leaves]), losses


def _statistics(leaf: Leaf) -> Array:
    """Returns 12 statistics of one tensor, from its old accumulators divided by the parameter's size.

    The last three reproduce a mistake in the published code on which its weights rely: the second moment's
    deviation from the mean of each momentum.
    """
    scale = jax.lax.rsqrt(jnp.maximum(jnp.mean(jnp.square(leaf.param)), PARAM_FLOOR))
    momenta = [scale * momentum for momentum in leaf.accumulators.momentum]
    (rms,) = (scale * rms for rms in leaf.accumulators.rms)
    long_axes = sum(size > 1 for size in leaf.param.shape)
    rank = jax.nn.one_hot(long_axes, NUM_RANKS, dtype=scale.dtype)  # zeros if there are more
    means = [jnp.mean(momentum) for momentum in momenta]
    numbers = [jnp.mean(rms), *(jnp.var(momentum) for momentum in momenta)]
    numbers += [jnp.mean(jnp.square(rms - mean)) for mean in means]
    logs = half_log(LOG_SCALE * jnp.stack(numbers))
    return jnp.concatenate([logs[:1], rank, logs[1:]])


RULE = Rule(STANDARD, _init, _update)
