"""Quadratic family: a matrix observed through random rows; each task has its own spectrum and noise."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Params
from celo2.tasks.families.augmentation import log_uniform
from celo2.tasks.families.base import UNTRAINED_LOSS, TaskFamily
from celo2.tasks.nn import TRUNCATED_STD, Initial, sample_params

CONDITION = (1.0, 1e4)  # minimum and maximum condition number
NOISE = (0.01, 0.3)  # minimum and maximum standard deviation of the noise on targets of mean square one


def sample_rotation(key: Array, size: int) -> Array:
    """Draws a random orthogonal matrix, uniform up to the signs of its columns: `(size, size)`.

    A product of reflections, each of which maps an axis to a random direction among the remaining ones.
    LAPACK's QR is avoided: if several host devices share few threads, one program's QR calls hold the
    threads that they wait for (jaxlib 0.10), so the program never ends.

    Source: Stewart, "The efficient generation of random orthogonal matrices" (SIAM J. Numer. Anal., 1980).
    """
    directions = jnp.triu(jax.random.normal(key, (size, size)))

    def reflect(matrix: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        direction, axis = given
        normal = direction / jnp.linalg.norm(direction) + axis * jnp.sign(jnp.sum(direction * axis))
        share = 2.0 / jnp.sum(jnp.square(normal))
        return matrix - share * jnp.outer(matrix @ normal, normal), None

    identity = jnp.eye(size)
    return jax.lax.scan(reflect, identity, (directions, identity))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticFamily(TaskFamily):
    """`mean |A (W - W*) - noise|²` of a 32 × 16 matrix W, over rows of A; 512 parameters.

    The rows are normal with covariance `Q diag(λ) Qᵀ` of mean eigenvalue one: a random rotation Q, and
    λ evenly spaced on a log scale down to 1 / condition. Rotation, condition, W* and noise level
    differ between tasks.

    Attributes:
        num_in: Rows of W.
        num_out: Columns of W.
    """

    num_in: int = 32
    num_out: int = 16
    source = "problem"

    def init_params(self, key: Array) -> Params:
        """Draws W with scale 1/√num_in."""
        scale = 1 / math.sqrt(self.num_in)
        return sample_params(key, {"matrix": {"kernel": Initial((self.num_in, self.num_out), scale=scale)}})

    def sample_problem(self, key: Array) -> Any:
        """Draws `root` (root rootᵀ is the covariance of A's rows), `optimum` W*, and log-uniform `noise`."""
        rotation_key, condition_key, optimum_key, noise_key = jax.random.split(key, 4)
        rotation = sample_rotation(rotation_key, self.num_in)
        condition = log_uniform(condition_key, *CONDITION)
        eigenvalues = condition ** -jnp.linspace(0.0, 1.0, self.num_in)
        eigenvalues = eigenvalues / jnp.mean(eigenvalues)
        optimum = jax.random.normal(optimum_key, (self.num_in, self.num_out)) / math.sqrt(self.num_in)
        return {
            "root": rotation * jnp.sqrt(eigenvalues)[None],
            "optimum": optimum,
            "noise": log_uniform(noise_key, *NOISE),
        }

    def make_batch(self, draw: Array, data: Any) -> Batch:
        """Makes rows of A, `(batch, num_in)`, and the targets A W* + noise, `(batch, num_out)`."""
        row_key, noise_key = jax.random.split(draw)
        row = jax.random.normal(row_key, (self.batch_size, self.num_in)) @ data["root"].T
        noise = data["noise"] * jax.random.normal(noise_key, (self.batch_size, self.num_out))
        return {"row": row, "target": row @ data["optimum"] + noise}

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Computes the squared error over that of an untrained W, times log(10).

        Initially A W has mean square TRUNCATED_STD², independent of the targets, whose mean square is one.
        """
        error = jnp.mean(jnp.square(batch["row"] @ params["matrix"]["kernel"] - batch["target"]))
        return UNTRAINED_LOSS * error / (1.0 + TRUNCATED_STD**2)
