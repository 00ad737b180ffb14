"""Regression family: every task is to learn a random teacher network."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Params
from celo2.tasks.families.augmentation import log_uniform
from celo2.tasks.families.base import UNTRAINED_LOSS, TaskFamily
from celo2.tasks.nn import TRUNCATED_STD
from celo2.tasks.vision.mlp import compute_mlp, init_mlp

NUM_PROBES = 256  # inputs on which a teacher's outputs are standardised
NOISE = (0.01, 0.3)  # minimum and maximum standard deviation of the noise on answers of mean square one
# Mean square of an untrained student's outputs for standard normal inputs: each of its two layers
# multiplies by TRUNCATED_STD², and ReLU keeps half.
STUDENT_POWER = TRUNCATED_STD**4 / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionFamily(TaskFamily):
    """16-32-4 perceptrons that learn the noisy outputs of a random tanh network; 676 parameters.

    Attributes:
        num_in: Number of inputs, standard normal.
        width: Hidden units of student and teacher.
        num_out: Number of outputs.
    """

    num_in: int = 16
    width: int = 32
    num_out: int = 4
    source = "problem"

    def init_params(self, key: Array) -> Params:
        """Draws an untrained student."""
        return init_mlp(key, (self.num_in, self.width, self.num_out))

    def sample_problem(self, key: Array) -> Any:
        """Draws a teacher whose outputs have mean zero and mean square one, and its log-uniform `noise`."""
        first_key, last_key, probe_key, noise_key = jax.random.split(key, 4)
        first = jax.random.normal(first_key, (self.num_in, self.width))
        first = first * (1.5 / self.num_in**0.5)  # large enough for tanh to saturate
        last = jax.random.normal(last_key, (self.width, self.num_out))
        answers = jnp.tanh(jax.random.normal(probe_key, (NUM_PROBES, self.num_in)) @ first) @ last
        size = jnp.sqrt(jnp.mean(jnp.square(answers), axis=0, keepdims=True))
        return {"first": first, "last": last / size, "noise": log_uniform(noise_key, *NOISE)}

    def make_batch(self, draw: Array, data: Any) -> Batch:
        """Makes standard normal `x` `(batch, num_in)` and the noisy outputs `y` `(batch, num_out)`."""
        input_key, noise_key = jax.random.split(draw)
        x = jax.random.normal(input_key, (self.batch_size, self.num_in))
        noise = data["noise"] * jax.random.normal(noise_key, (self.batch_size, self.num_out))
        return {"x": x, "y": jnp.tanh(x @ data["first"]) @ data["last"] + noise}

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Computes the squared error over an untrained student's, 1 + `STUDENT_POWER`, times log(10)."""
        error = jnp.mean(jnp.square(compute_mlp(params, batch["x"]) - batch["y"]))
        return UNTRAINED_LOSS * error / (1.0 + STUDENT_POWER)
