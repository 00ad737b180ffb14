"""What inner runs measure for the meta-gradient, and which of it counts."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from celo2.meta.config import MetaConfig

__all__ = ["LEAST_LOSS", "Losses", "loss_weight", "scale_loss"]

LEAST_LOSS = 1e-3  # that has a logarithm of its own, in units in which an untrained network scores log(10)


class Losses(NamedTuple):
    """What was measured, each `(steps, pairs)`; K steps in a truncation.

    Attributes:
        positive: Meta-loss under θ + ε, see `scale_loss`.
        negative: Meta-loss under θ - ε, see `scale_loss`.
        is_done: The run was reset just before this step.
        diverged: Runs of the pair (0, 1 or 2) whose loss was not finite.
        is_running: Whether the step was part of a run, and not after the end of one.
        is_last: Whether it was the run's last.
        weight: Factor of the loss in its pair's meta-loss.
    """

    positive: Array
    negative: Array
    is_done: Array
    diverged: Array
    is_running: Array
    is_last: Array
    weight: Array


def loss_weight(step: Array, length: Array, config: MetaConfig) -> Array:
    """The factor of a loss in its pair's meta-loss.

    The meta-loss is a mean over the truncation or, with "full-es", over the whole run. If only final
    losses count, a truncation that holds one stands for all those of the same run that hold none: the
    factor is their number, `mean_unroll / K`, so that the expected meta-loss is the final loss.

    Args:
        step: Steps that the run has taken, int32.
        length: Steps after which it ends, int32 of the same shape.
        config: The recipe.
    """
    is_full = config.estimator == "full-es"
    if config.meta_loss == "final":
        factor = 1.0 if is_full else config.mean_unroll / config.truncation_length
        return jnp.where(step == length - 1, jnp.float32(factor), 0.0)
    if is_full:
        return jnp.where(step < length, 1.0 / length.astype(jnp.float32), 0.0)
    return jnp.full(step.shape, 1.0 / config.truncation_length, jnp.float32)


def scale_loss(losses: Array, ceiling: float, config: MetaConfig) -> Array:
    """What is judged of finite losses: themselves in [0, ceiling], or their logarithms."""
    if config.loss_scale == "log":
        return jnp.log(jnp.clip(losses, LEAST_LOSS, ceiling))
    return jnp.clip(losses, 0.0, ceiling)
