"""Persistent evolution strategies with resets, in float64 NumPy, for one truncation.

Source: arXiv 2112.13835, and the reference's treatment of resets: a task's losses before its first `is_done`
weigh the accumulated perturbation, this truncation's included; those from that step on weigh the fresh
perturbation alone, from which the accumulator then restarts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tree = dict[str, Array]


@dataclass(frozen=True)
class Estimate:
    """What one truncation gives: `gradient` and `accumulator` by name, and the mean loss."""

    gradient: Tree
    accumulator: Tree
    mean_loss: float


def estimate(
    loss_pos: Array,
    loss_neg: Array,
    is_done: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    perturbation: Mapping[str, Array],
    accumulator: Mapping[str, Array],
    sigma: float,
    sign_delta_loss_scalar: float = 0.0,
) -> Estimate:
    """The PES gradient, averaged over tasks.

    Args:
        loss_pos: [K, tasks], losses with `theta + perturbation`.
        loss_neg: [K, tasks], losses with `theta - perturbation`.
        is_done: [K, tasks], true where a run ended; that step's loss already counts as the next run's.
        mask: [K, tasks], which losses count.
        perturbation: Arrays [tasks, …], this truncation's.
        accumulator: Arrays [tasks, …], the sum over the run's earlier truncations.
        sigma: Standard deviation of the perturbations.
        sign_delta_loss_scalar: If not 0, every loss difference of a task becomes this times the sign of the
            task's total difference.
    """
    counts = mask.astype(np.float64)
    share = counts / counts.sum(axis=0)  # of each step in its task's mean
    delta = loss_pos.astype(np.float64) - loss_neg
    if sign_delta_loss_scalar:
        delta = np.broadcast_to(sign_delta_loss_scalar * np.sign((delta * share).sum(axis=0)), delta.shape)
    finished = np.cumsum(is_done, axis=0) > 0
    before = (delta * share * ~finished).sum(axis=0)
    after = (delta * share * finished).sum(axis=0)
    factor = 1.0 / (2.0 * sigma**2)

    gradient: Tree = {}
    moved: Tree = {}
    for name, fresh in perturbation.items():
        fresh = fresh.astype(np.float64)
        total = accumulator[name] + fresh
        column = (-1, *[1] * (fresh.ndim - 1))  # one number for each task
        weighted = before.reshape(column) * total + after.reshape(column) * fresh
        gradient[name] = factor * weighted.mean(axis=0)
        moved[name] = np.where(finished[-1].reshape(column), fresh, total)
    mean_loss = ((loss_pos.astype(np.float64) + loss_neg) / 2 * share).sum(axis=0).mean()
    return Estimate(gradient, moved, float(mean_loss))
