"""Learning rates of inner runs: a peak for each run and array, and a schedule over the run's length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from celo2.meta.choices import Schedule
from celo2.meta.config import MetaConfig
from celo2.tasks.augmentation import log_uniform
from celo2.tasks.base import Params

__all__ = ["rate_share", "sample_rates"]


def sample_rates(key: Array, scales: Params, config: MetaConfig, family_factor: float = 1.0) -> Params:
    """One factor for the task; in the network's units the larger an array's scale, the less it moves."""
    factor = family_factor * log_uniform(key, 1.0 / config.rate_spread, config.rate_spread)
    return jax.tree.map(lambda scale: factor / scale if config.rate_units == "network" else factor, scales)


def rate_share(step: Array, length: Array, schedule: Schedule) -> Array:
    """The learning rate at a step of a run over its peak, in [0, 1]."""
    if schedule == "constant":
        return jnp.ones((), jnp.float32)
    progress = step.astype(jnp.float32) / length.astype(jnp.float32)
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
