"""Persistent evolution strategies (PES): meta-gradients from the losses of antithetic pairs.

Source: Vicol, Metz, Sohl-Dickstein, "Unbiased gradient estimation in unrolled computation graphs
with persistent evolution strategies" (arXiv 2112.13835), algorithm 1, with resets inside a
truncation as in learned_optimization's trainer.

With perturbations ε of standard deviation σ, and ξ their sum since a run began,

    g = 1/(2σ²) · mean over pairs ( ξ Σ_before (L⁺ - L⁻)/K + ε Σ_after (L⁺ - L⁻)/K )

where "after" begins with the step at which the run was reset: its losses depend only on this
truncation's ε. From there ξ restarts at ε. If the run continues from a state reached with the sum ξ_saved, ξ
restarts at ξ_saved + ε, which then also replaces ε in the second term.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Theta = dict[str, Array]


class Estimate(NamedTuple):
    """The estimate of one truncation.

    Attributes:
        gradient: Meta-gradient of the mean loss, a tree like theta.
        accumulator: Updated sum of perturbations of each pair, leading axis `pairs`.
        mean_loss: Mean meta-loss of both signs, a scalar.
        signal_to_noise: `|ḡ|² / mean |gᵢ - ḡ|²` over the pairs' gradients gᵢ with mean ḡ. Pure noise
            gives `1 / (pairs - 1)` in expectation; larger values indicate signal.
        pair_gradients: The pairs' gradients gᵢ, leading axis `pairs`.
    """

    gradient: Theta
    accumulator: Theta
    mean_loss: Array
    signal_to_noise: Array
    pair_gradients: Theta


def sample_perturbations(
    key: Array, theta: Theta, sigma: float, num_pairs: int, *, frozen: Collection[str] = ()
) -> Theta:
    """Draws ε ~ N(0, σ²) for each pair: a tree like theta with a leading axis `num_pairs`.

    Arrays named in `frozen` get zeros, which does not affect the draws of the others.
    """
    keys = jax.random.split(key, len(theta))

    def draw(leaf_key: Array, name: str, array: Array) -> Array:
        shape = (num_pairs, *array.shape)
        if name in frozen:
            return jnp.zeros(shape, array.dtype)
        return sigma * jax.random.normal(leaf_key, shape, array.dtype)

    return {
        name: draw(leaf_key, name, array)
        for leaf_key, (name, array) in zip(keys, sorted(theta.items()), strict=True)
    }


def antithetic(theta: Theta, perturbation: Theta) -> Theta:
    """Stacks `[θ + ε, θ - ε]` along a new axis 1, after `pairs`."""

    def pair(array: Array, noise: Array) -> Array:
        return jnp.stack([array[None] + noise, array[None] - noise], axis=1)

    return {name: pair(array, perturbation[name]) for name, array in theta.items()}


def estimate(
    loss_pos: Array,
    loss_neg: Array,
    is_done: Array,
    perturbation: Theta,
    accumulator: Theta,
    *,
    sigma: float,
    weight: Array,
    sign_scale: float = 0.0,
    restored: Theta | None = None,
) -> Estimate:
    """Estimates the meta-gradient of one truncation.

    Args:
        loss_pos: Meta-losses under θ + ε, `(K, pairs)`.
        loss_neg: Meta-losses under θ - ε, `(K, pairs)`.
        is_done: Whether the run was reset just before the step, `(K, pairs)` bool.
        perturbation: This truncation's ε, leading axis `pairs`.
        accumulator: Sum of the run's earlier perturbations, leading axis `pairs`.
        sigma: Standard deviation of the perturbations.
        weight: Factor of each loss in its pair's sum, `(K, pairs)`; 1/K makes the sum a mean.
        sign_scale: If nonzero, each pair's loss difference is replaced by `sign_scale` times the
            sign of its weighted sum.
        restored: Sum of the perturbations at the saved state from which a reset run continues, leading axis
            `pairs`; zero for a new task. None: new tasks for all.
    """
    delta = loss_pos - loss_neg
    if sign_scale:
        delta = sign_scale * jnp.sign(jnp.sum(delta * weight, axis=0, keepdims=True))
    fresh = jnp.cumsum(is_done, axis=0) > 0
    before = jnp.sum(jnp.where(fresh, 0.0, delta * weight), axis=0)
    after = jnp.sum(jnp.where(fresh, delta * weight, 0.0), axis=0)
    was_reset = jnp.any(is_done, axis=0)
    total = {name: accumulator[name] + noise for name, noise in perturbation.items()}
    restarted = perturbation
    if restored is not None:
        restarted = {name: restored[name] + noise for name, noise in perturbation.items()}

    def gradients_of(name: str) -> Array:
        first, second = (_per_pair(part, total[name]) for part in (before, after))
        return (first * total[name] + second * restarted[name]) / (2.0 * sigma**2)

    gradients = {name: gradients_of(name) for name in perturbation}
    gradient = {name: jnp.mean(each, axis=0) for name, each in gradients.items()}
    return Estimate(
        gradient,
        {
            name: jnp.where(_per_pair(was_reset, noise), noise, total[name])
            for name, noise in restarted.items()
        },
        jnp.mean(jnp.sum(weight * (loss_pos + loss_neg) / 2.0, axis=0)),
        signal_to_noise(gradient, gradients),
        gradients,
    )


def signal_to_noise(mean: Theta, gradients: Theta) -> Array:
    """Computes the signal-to-noise ratio of `Estimate`; NaN for a single pair, whose deviation is zero.

    Args:
        mean: The meta-gradient.
        gradients: The gradient of each pair, leading axis `pairs`.
    """
    signal = sum(jnp.sum(jnp.square(array)) for array in mean.values())
    noise = sum(
        jnp.sum(jnp.square(each - mean[name][None])) / each.shape[0] for name, each in gradients.items()
    )
    return jnp.asarray(signal / noise)


def _per_pair(values: Array, like: Array) -> Array:
    return values.reshape(values.shape + (1,) * (like.ndim - 1))
