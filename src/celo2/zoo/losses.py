"""Running moments of a loss, by which RNN-MLP judges where it stands."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["Moments", "init_moments", "training_features", "update_moments"]

EPS = 1e-8  # under the root of the variance, and added to its correction
VALID_EPS = 1e-7  # added to the validation mean's correction
BOUND = 5.0


class Moments(NamedTuple):
    """Mean and variance of a loss, not corrected for their start at zero, and how many losses, int32."""

    mean: Array
    variance: Array
    seen: Array


def init_moments(dtype: jnp.dtype) -> Moments:
    """Before the first loss."""
    return Moments(jnp.zeros((), dtype), jnp.zeros((), dtype), jnp.zeros((), jnp.int32))


def update_moments(moments: Moments, loss: Array, decay: float) -> Moments:
    """The moments with a loss; its deviation is from the new mean."""
    mean = decay * moments.mean + (1.0 - decay) * loss
    variance = decay * moments.variance + (1.0 - decay) * jnp.square(mean - loss)
    return Moments(mean, variance, moments.seen + 1)


def training_features(
    train: Moments, train_decay: float, loss: Array, valid: Moments, valid_decay: float
) -> Array:
    """The training loss and the mean validation loss, in deviations from the mean training loss, within ±5.

    Without a validation loss the second compares 0 with that mean, as the public code does.
    """
    correction = 1.0 / (1.0 - train_decay ** train.seen.astype(loss.dtype) + EPS)
    valid_mean = valid.mean / (1.0 - valid_decay ** valid.seen.astype(loss.dtype) + VALID_EPS)
    values = jnp.stack([loss, valid_mean])
    width = jax.lax.rsqrt(train.variance * correction + EPS)
    return jnp.clip((values - train.mean * correction) * width, -BOUND, BOUND)
