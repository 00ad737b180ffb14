"""Ill-conditioned quadratic task on a matrix, observed through random rows; its minimum is zero."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.tasks.base import Batch, Dataset, Params, Task
from celo2.tasks.nn import TRUNCATED_STD, Initial, sample_params

_NUM_TRAIN = 8_192  # rows of A
_NUM_VALID = 1_024


def make_quadratic(
    *, num_in: int = 64, num_out: int = 32, condition: float = 1e3, batch_size: int = 32
) -> Task:
    """Makes the task `½ mean‖A (W - W*)‖²` over random batches of rows of A.

    The rows are normal with covariance `Q diag(λ) Qᵀ`: a random rotation Q, and λ evenly spaced on
    a log scale from 1 to 1/`condition`, then scaled to mean one. A batch smaller than `num_in` makes
    the gradient noisy everywhere except at the minimum `W = W*`, where every row's loss is zero.

    Args:
        num_in: Rows of W, ≥ 1.
        num_out: Columns of W, ≥ 1.
        condition: Ratio of the largest to the smallest λ, ≥ 1.
        batch_size: Rows of A in a training batch.

    Raises:
        ValueError: A size or the condition is below 1.
    """
    for name, value in (("num_in", num_in), ("num_out", num_out), ("condition", condition)):
        if not value >= 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    dataset = _make_dataset(num_in, num_out, condition)
    scale = 1 / math.sqrt(num_in)

    def init(key: Array) -> Params:
        return sample_params(key, {"matrix": {"kernel": Initial((num_in, num_out), scale=scale)}})

    def loss(params: Params, batch: Batch) -> Array:
        return 0.5 * jnp.square(batch["row"] @ params["matrix"]["kernel"] - batch["target"]).mean()

    # W starts independent of W*, with zero mean, so that the two parts of A W - A W* add in square.
    start = (TRUNCATED_STD * scale) ** 2 * np.square(dataset.train["row"]).sum(axis=-1).mean()
    return Task(
        name="quadratic",
        dataset=dataset,
        init=init,
        loss=loss,
        batch_size=batch_size,
        initial_loss=0.5 * float(start + np.square(dataset.train["target"]).mean()),
    )


def _make_dataset(num_in: int, num_out: int, condition: float) -> Dataset:
    rng = np.random.default_rng(0)
    eigenvalues = np.logspace(0.0, -math.log10(condition), num_in)
    eigenvalues /= eigenvalues.mean()
    rotation = np.linalg.qr(rng.normal(size=(num_in, num_in))).Q
    optimum = rng.normal(size=(num_in, num_out)) / math.sqrt(num_in)

    def rows(count: int) -> dict[str, np.ndarray]:
        row = (rng.normal(size=(count, num_in)) * np.sqrt(eigenvalues)) @ rotation.T
        return {"row": row.astype(np.float32), "target": (row @ optimum).astype(np.float32)}

    return Dataset(
        name=f"quadratic-{num_in}x{num_out}-condition-{condition:g}",
        train=rows(_NUM_TRAIN),
        valid=rows(_NUM_VALID),
        origin="made on this machine from a fixed seed",
    )
