"""How the LSTMs of VeLO, RNN-MLP and NN-Adam are told of numbers of any size: by their logarithm."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

__all__ = ["bounded_log", "half_log"]

LOG_EPS = 1e-8  # added to the magnitude
LOG_BOUND = 5.0  # of the logarithm, both ways


def bounded_log(values: Array) -> Array:
    """`clip(log(1e-8 + |x|), ±5)`."""
    return jnp.clip(jnp.log(LOG_EPS + jnp.abs(values)), -LOG_BOUND, LOG_BOUND)


def half_log(values: Array) -> Array:
    """Half of `bounded_log`, as VeLO and NN-Adam have it."""
    return 0.5 * bounded_log(values)
