"""Training protocol of comparisons: schedules, seeds, validation and divergence, the same for all optimizers.

Runs are in float32, with a linear warm-up over 5 % of the steps, a cosine decay to zero, and the same initial
parameters and batches for every optimizer (arXiv 2602.19142, evaluation set-up). An optimizer
designed for a constant learning rate gets one after the warm-up; one that sets its step sizes has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

WARMUP = 0.05  # share of the steps
WINDOW = 0.05  # share of the steps that a training loss is averaged over
NUM_EVALS = 10  # validations of a run, the last one after its last step
VALID_BATCHES = 16  # of each validation, the same ones every time
DIVERGENCE_MARGIN = 1.05  # a run that ends above this multiple of an untrained network's loss diverged


def cosine_schedule(peak: ArrayLike, steps: int) -> optax.Schedule:
    """Makes a linear warm-up to `peak` over 5 % of the steps, then a cosine decay to zero at the last step.

    The first learning rate is not zero: with W warm-up steps out of T, step t (from 0) has the learning rate
    `peak · min((t + 1) / W, (1 + cos(π (t - W) / (T - W))) / 2)`.

    Args:
        peak: The highest learning rate; may be traced.
        steps: Length T of the run, ≥ 2.
    """
    warmup = _warmup_length(steps)

    def schedule(count: ArrayLike) -> Array:
        time = jnp.asarray(count, jnp.float32)
        rising = (time + 1.0) / warmup
        decayed = jnp.clip((time - warmup) / (steps - warmup), 0.0, 1.0)
        return jnp.asarray(peak, jnp.float32) * jnp.minimum(rising, 0.5 * (1.0 + jnp.cos(jnp.pi * decayed)))

    return schedule


def constant_schedule(peak: ArrayLike, steps: int) -> optax.Schedule:
    """Makes the same warm-up, then a constant `peak`; the arguments are those of `cosine_schedule`."""
    warmup = _warmup_length(steps)

    def schedule(count: ArrayLike) -> Array:
        rising = (jnp.asarray(count, jnp.float32) + 1.0) / warmup
        return jnp.asarray(peak, jnp.float32) * jnp.minimum(rising, 1.0)

    return schedule


def linear_schedule(peak: ArrayLike, steps: int) -> optax.Schedule:
    """Makes the same warm-up, then a linear decay to zero at the last step; same arguments."""
    warmup = _warmup_length(steps)

    def schedule(count: ArrayLike) -> Array:
        time = jnp.asarray(count, jnp.float32)
        falling = 1.0 - jnp.clip((time - warmup) / (steps - warmup), 0.0, 1.0)
        return jnp.asarray(peak, jnp.float32) * jnp.minimum((time + 1.0) / warmup, falling)

    return schedule


SCHEDULES: Mapping[str, Callable[[ArrayLike, int], optax.Schedule]] = MappingProxyType(
    {"cosine": cosine_schedule, "linear": linear_schedule, "constant": constant_schedule}
)
"""Learning-rate schedules by name: `(peak, steps) → schedule`."""


def _warmup_length(steps: int) -> int:
    return max(1, round(WARMUP * steps))


def window_length(steps: int) -> int:
    """Returns the number of steps that a training loss is averaged over (5 % of the run)."""
    return max(1, round(WINDOW * steps))


def seed_keys(seed: ArrayLike) -> tuple[Array, Array]:
    """Derives the keys of a run's initial parameters and batches from the seed alone."""
    init_key, loop_key = jax.random.split(jax.random.key(jnp.asarray(seed, jnp.uint32)))
    return init_key, loop_key
