"""Objective of the search: the loss at the end of short runs, at the best rate, relative to the start's.

For a candidate and a task,

    r = min over the rates of log loss(candidate) - min over the rates of log loss(start),

where the loss is the mean training loss over the last fifth of a run; both runs have the same initial
parameters, the same batches and a cosine schedule. A candidate's value is the weighted soft maximum of its
tasks' r,

    1/κ · log Σ w exp(κ r),

so that a gain on one kind of task cannot offset a loss on another: with κ = 25 a task that is 8 % worse
counts as much as e² unchanged tasks.

Gradients may be multiplied by a factor drawn for each task and seed, the same for all candidates and the
start, so that a rule that depends on their scale is not preferred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from celo2.constants import ADAMW_LR_SCALE
from celo2.jax.runtime import compiler_options
from celo2.meta.search.mixture import find_updated, make_optimizer, to_mixture
from celo2.meta.task_sets import END_SHARE, TaskEntry, TaskSet
from celo2.training.protocol import DIVERGENCE_MARGIN, cosine_schedule, seed_keys

RATE_FACTORS = (0.6, 1.0, 1.67)  # times the task's own rate
LARGEST_CORRECTION = 0.02  # limit on how far the parabola may lower the log loss
SHARPNESS = 25.0  # κ
_SCALE_KEY = 0x5CA1E  # of the gradients' factor, folded into the key of a run's initial parameters


def soft_maximum(ratios: np.ndarray, weights: Sequence[float], sharpness: float = SHARPNESS) -> np.ndarray:
    """Computes `1/κ · log Σ w exp(κ r)` over the last axis.

    Args:
        ratios: Log ratios of tasks, `(..., tasks)`.
        weights: Weights of the tasks, summing to 1.
        sharpness: κ > 0; the weighted mean in the limit 0, the maximum in the limit of infinity.

    Example:
        >>> soft_maximum(np.array([-0.04, -0.04]), [0.5, 0.5]).round(3)
        np.float64(-0.04)
        >>> float(soft_maximum(np.array([-0.08, 0.0]), [0.5, 0.5])) > -0.04
        True
    """
    highest = ratios.max(-1, keepdims=True)
    total = (np.asarray(weights) * np.exp(sharpness * (ratios - highest))).sum(-1)
    return highest[..., 0] + np.log(total) / sharpness


def best_of_rates(losses: np.ndarray) -> np.ndarray:
    """Estimates the lowest log loss over the rate, by a parabola through three rates of equal ratio.

    Args:
        losses: `(…, 3)`, by increasing rate.

    Returns:
        `(…,)`: the parabola's minimum if it lies between the outer rates, otherwise the lowest of
        the three; never more than 0.02 below the lowest, so that one outlier cannot make a candidate.

    Example:
        >>> best_of_rates(np.array([1.0, 0.0, 1.0]))
        array(0.)
    """
    low, middle, high = np.moveaxis(losses, -1, 0)
    curvature = low - 2.0 * middle + high
    slope = (high - low) / 2.0
    lowest = losses.min(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = -slope / curvature
        vertex = middle - slope**2 / (2.0 * curvature)
    inside = (curvature > 0) & (np.abs(place) <= 1.0)
    return np.where(inside, np.maximum(vertex, lowest - LARGEST_CORRECTION), lowest)


class Objective:
    """The tasks of a set, compiled when they are first measured.

    Args:
        task_set: The tasks that candidates are trained on.
        variant: "celo2" or "celo2-base".
        adamw_lr_scale: Learning rate of AdamW's share divided by that of the rule.
        eigenbasis_every: Steps between updates of the eigenbasis in which all rules run; 0: no basis.
        gradient_scales: Smallest and largest factor of the gradients, drawn log-uniformly.
        stored_kernels: Whether convolution kernels are used as stored, as in `mixture.make_optimizer`.

    Attributes:
        task_set: The tasks that candidates are trained on.
    """

    def __init__(
        self,
        task_set: TaskSet,
        variant: str,
        *,
        adamw_lr_scale: float = ADAMW_LR_SCALE,
        eigenbasis_every: int = 0,
        gradient_scales: tuple[float, float] = (1.0, 1.0),
        stored_kernels: bool = False,
    ) -> None:
        self.task_set = task_set
        self._variant = variant
        self._options: dict[str, Any] = {
            "adamw_lr_scale": adamw_lr_scale,
            "eigenbasis_every": eigenbasis_every,
            "stored_kernels": stored_kernels,
        }
        self._gradient_scales = gradient_scales
        self._programs: dict[tuple[str, int], Any] = {}
        self._tasks = {entry.name: entry.make() for entry in task_set.tasks}

    def measure(self, name: str, vectors: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Measures a task's log losses at the end of the runs, at each candidate's best rate.

        Args:
            name: Name of the task.
            vectors: Candidates, one row each; a different number of them recompiles.
            seeds: Seeds of the runs, the same for all candidates.

        Returns:
            The means over the seeds, `(candidates,)`.
        """
        (entry,) = self.task_set.select([name]).tasks
        return best_of_rates(np.mean([self._run(entry, vectors, seed) for seed in seeds], axis=0))

    def _run(self, entry: TaskEntry, vectors: np.ndarray, seed: int) -> np.ndarray:
        """Trains all candidates at all rates with one seed; returns log losses `(candidates, rates)`."""
        task = self._tasks[entry.name]
        rates = [factor * entry.rate for factor in RATE_FACTORS]
        runs = (
            jnp.repeat(jnp.asarray(vectors, jnp.float32), len(rates), axis=0),
            jnp.tile(jnp.asarray(rates, jnp.float32), len(vectors)),
        )
        arguments = (runs, jnp.asarray(seed, jnp.uint32), jax.tree.map(jnp.asarray, dict(task.dataset.train)))
        key = entry.name, len(vectors)
        if key not in self._programs:
            lowered = jax.jit(partial(self._train_all, entry)).lower(*arguments)
            self._programs[key] = lowered.compile(compiler_options(jax.default_backend()))
        losses = np.asarray(self._programs[key](*arguments)).reshape(len(vectors), len(rates))
        ceiling = math.log(DIVERGENCE_MARGIN * task.initial_loss)
        return np.minimum(np.nan_to_num(losses, nan=ceiling, posinf=ceiling), ceiling)

    def _train_all(self, entry: TaskEntry, runs: tuple[Array, Array], seed: Array, data: Any) -> Array:
        train = self._train(entry)
        size = entry.at_once or len(runs[1])
        return jax.lax.map(lambda run: train(*run, seed, data), runs, batch_size=size)

    def sample_gradient_rms(self, vector: np.ndarray, seed: int) -> np.ndarray:
        """Samples root mean squares of a rule's gradients on the tasks, each at the task's own rate.

        Args:
            vector: The rule, as in `mixture.to_mixture`.
            seed: Seed of the runs, one for each task.

        Returns:
            One value per array that the rule updates and per step, over all tasks, `(samples,)`, without
            zeros.
        """
        found = []
        for entry in self.task_set.tasks:
            train = jax.jit(partial(self._train(entry), with_rms=True))
            data = jax.tree.map(jnp.asarray, dict(self._tasks[entry.name].dataset.train))
            rate = jnp.asarray(entry.rate, jnp.float32)
            _, rms = train(jnp.asarray(vector, jnp.float32), rate, jnp.asarray(seed, jnp.uint32), data)
            found.append(np.asarray(rms).ravel())
        together = np.concatenate(found)
        return together[together > 0]

    def _train(self, entry: TaskEntry) -> Any:
        """Compiles `(vector, rate, seed, data) → log of the loss at the end`, NaN if it diverged.

        With `with_rms`, it also returns the gradients' root mean squares `(steps, arrays)`.
        """
        task = self._tasks[entry.name]
        variant = self._variant
        first_counted = entry.steps - max(1, round(END_SHARE * entry.steps))

        def train(vector: Array, rate: Array, seed: Array, data: Any, with_rms: bool = False) -> Any:
            optimizer = make_optimizer(
                to_mixture(vector),
                variant,
                cosine_schedule(rate, entry.steps),
                entry.weight_decay,
                **self._options,
            )
            init_key, batch_key = seed_keys(seed)
            scale = _draw_scale(init_key, *self._gradient_scales)
            params = task.init(init_key)
            updated = jax.tree.leaves(find_updated(params, variant))

            def step(carry: tuple[Any, Any, Array], count: Array) -> tuple[Any, Array]:
                params, opt_state, total = carry
                batch = task.sample_batch(jax.random.fold_in(batch_key, count), data)
                loss, grads = jax.value_and_grad(task.loss)(params, batch)
                grads = grads if scale is None else jax.tree.map(lambda grad: scale * grad, grads)
                updates, opt_state = optimizer.update(grads, opt_state, params, step=count)
                total += jnp.where(count >= first_counted, loss, 0.0)
                watched = zip(jax.tree.leaves(grads), updated, strict=True) if with_rms else ()
                rms = jnp.asarray([jnp.sqrt(jnp.mean(jnp.square(grad))) for grad, own in watched if own])
                return (optax.apply_updates(params, updates), opt_state, total), rms

            carry = params, optimizer.init(params), jnp.zeros(())
            (_, _, total), rms = jax.lax.scan(step, carry, jnp.arange(entry.steps))
            end = jnp.log(total / (entry.steps - first_counted))
            return (end, rms) if with_rms else end

        return train


def _draw_scale(init_key: Array, low: float, high: float) -> Array | None:
    """Draws the factor of a run's gradients from its initial parameters' key; None for a factor of 1."""
    if low == high == 1.0:
        return None
    key = jax.random.fold_in(init_key, _SCALE_KEY)
    return jnp.exp(jax.random.uniform(key, minval=math.log(low), maxval=math.log(high)))
