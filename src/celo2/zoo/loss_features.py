"""Loss and time features of the learned schedules, and the schedule of Celo and Celo-Adam.

The first part serves Celo, Celo-Adam and VeLO: the elapsed fraction of the run and the decrease in loss. The
second standardises losses for RNN-MLP (`Moments`); the third has the logarithms of VeLO and NN-Adam.

Source: arXiv 2211.09760 ("loss features") and the public code of Celo (arXiv 2501.12670).

With `δ_j = exp(-1/τ_j)`, ten `τ_j` log-spaced from 10 to the run's length T, and `n` previous losses:

    x̃ = min(2 max_j |q_j|, x),  q_j = μ_j / (1 - δ_j^(n+1))       cuts off jumps; x̃ = x at first
    μ_j ← δ_j μ_j + (1 - δ_j) x̃,   μ̂_j = μ_j / (1 - δ_j^(n+1)),   low_j ← min(low_j, μ̂_j)
    feature_j = clip((μ̂_j - low_j) / max(1e-8, μ̂_{j+1} - low_j) - 1, ±1),  j = 0 … 8,  0 for the first two
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from celo2.zoo.lstm import LstmState, Theta, initial_rows, linear, lstm, mix

NUM_DECAYS = 10
BEFORE_ANY_LOSS = 999999999999.0  # initial value of the lowest mean
SILENT_STEPS = 2  # first steps of a run, where the features are zero
SPREAD_FLOOR = 1e-8
SHARES = (
    0.03,
    0.1,
    0.2,
    0.4,
    0.6,
    0.8,
    0.9,
    1.0,
    1.1,
)  # elapsed fractions of the run at which the features are centred
STEP_SCALE = 0.1  # Celo's multiplier if its head outputs 0


class LossBuffer(NamedTuple):
    """Means of the loss over ten horizons.

    Attributes:
        mean: The means μ, without bias correction, `(10,)`.
        low: The lowest bias-corrected mean of each horizon so far, `(10,)`.
    """

    mean: Array
    low: Array


class ScheduleState(NamedTuple):
    """State of Celo's schedule: one LSTM row shared by all tensors, and the means of the loss."""

    lstm: LstmState
    losses: LossBuffer


def init_buffer(dtype: jnp.dtype) -> LossBuffer:
    """Returns the means before the first loss."""
    return LossBuffer(jnp.zeros(NUM_DECAYS, dtype), jnp.full(NUM_DECAYS, BEFORE_ANY_LOSS, dtype))


def loss_features(
    buffer: LossBuffer, loss: Array, count: Array, horizon: ArrayLike
) -> tuple[Array, LossBuffer]:
    """Returns the nine features after a loss and the means updated with it.

    Args:
        buffer: The means of the previous losses.
        loss: A scalar of the buffer's dtype.
        count: The number of previous losses, int32.
        horizon: The length T of the run in steps, positive; may be traced.
    """
    dtype = buffer.mean.dtype
    top = jnp.log10(jnp.asarray(horizon, dtype))
    tau = 10.0 ** (1.0 + (top - 1.0) * (jnp.arange(NUM_DECAYS, dtype=dtype) / (NUM_DECAYS - 1)))
    decay = jnp.exp(-1.0 / tau)
    correction = 1.0 - decay ** (count + 1).astype(dtype)
    largest = jnp.where(count == 0, loss, jnp.max(buffer.mean / correction))
    mean = decay * buffer.mean + (1.0 - decay) * jnp.minimum(2.0 * jnp.abs(largest), loss)
    corrected = mean / correction
    low = jnp.minimum(buffer.low, corrected)
    spread = jnp.maximum(corrected[1:] - low[:-1], SPREAD_FLOOR)
    features = jnp.clip((corrected - low)[:-1] / spread - 1.0, -1.0, 1.0)
    return jnp.where(count < SILENT_STEPS, 0.0, features), LossBuffer(mean, low)


def share_features(count: Array, num_steps: ArrayLike, dtype: jnp.dtype) -> Array:
    """Returns `tanh(10 (t/T - a))` for nine fractions a, with t counted from 0."""
    share = count.astype(dtype) / jnp.asarray(num_steps, dtype)
    return jnp.tanh(10.0 * (share - jnp.asarray(SHARES, dtype)))


def init_schedule(theta: Theta, dtype: jnp.dtype) -> ScheduleState:
    """Returns the schedule's state before the first step."""
    return ScheduleState(initial_rows(theta, 1, dtype), init_buffer(dtype))


def step_schedule(
    theta: Theta, state: ScheduleState, loss: Array, count: Array, num_steps: ArrayLike
) -> tuple[Array, ScheduleState]:
    """Returns the multiplier `0.1 · exp(step_size(h))` of this step, a scalar, and the updated state.

    Every tensor has the same inputs, so one row of the LSTM represents all of them; `hidden` is its output.
    """
    features, losses = loss_features(state.losses, loss, count, num_steps)
    inputs = jnp.concatenate([share_features(count, num_steps, loss.dtype), features])[None]
    rows = lstm(theta, mix(theta, inputs), state.lstm)
    size = STEP_SCALE * jnp.exp(linear(theta, "rnn_params/step_size", rows.hidden))
    return jnp.reshape(size, ()), ScheduleState(rows, losses)


EPS = 1e-8  # under the root of the variance, and added to its correction
VALID_EPS = 1e-7  # added to the validation mean's correction
BOUND = 5.0


class Moments(NamedTuple):
    """Mean and variance of a loss without bias correction, and the number of losses, int32."""

    mean: Array
    variance: Array
    seen: Array


def init_moments(dtype: jnp.dtype) -> Moments:
    """Returns the moments before the first loss."""
    return Moments(jnp.zeros((), dtype), jnp.zeros((), dtype), jnp.zeros((), jnp.int32))


def update_moments(moments: Moments, loss: Array, decay: float) -> Moments:
    """Returns the moments updated with a loss; its deviation is taken from the new mean."""
    mean = decay * moments.mean + (1.0 - decay) * loss
    variance = decay * moments.variance + (1.0 - decay) * jnp.square(mean - loss)
    return Moments(mean, variance, moments.seen + 1)


def training_features(
    train: Moments, train_decay: float, loss: Array, valid: Moments, valid_decay: float
) -> Array:
    """Returns the training loss and the mean validation loss, in deviations from the mean training loss.

    Both are clipped to ±5. Without a validation loss, the second compares 0 with that mean, as in the public
    code.
    """
    correction = 1.0 / (1.0 - train_decay ** train.seen.astype(loss.dtype) + EPS)
    valid_mean = valid.mean / (1.0 - valid_decay ** valid.seen.astype(loss.dtype) + VALID_EPS)
    values = jnp.stack([loss, valid_mean])
    width = jax.lax.rsqrt(train.variance * correction + EPS)
    return jnp.clip((values - train.mean * correction) * width, -BOUND, BOUND)


LOG_EPS = 1e-8  # added to the magnitude
LOG_BOUND = 5.0  # of the logarithm, both ways


def bounded_log(values: Array) -> Array:
    """Returns `clip(log(1e-8 + |x|), ±5)`."""
    return jnp.clip(jnp.log(LOG_EPS + jnp.abs(values)), -LOG_BOUND, LOG_BOUND)


def half_log(values: Array) -> Array:
    """Returns half of `bounded_log`, as in VeLO and NN-Adam."""
    return 0.5 * bounded_log(values)
