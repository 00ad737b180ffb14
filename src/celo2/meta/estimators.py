"""Meta-gradient estimators: convert the losses of antithetic pairs into a meta-gradient, by recipe.

| estimator | an outer iteration sees | weighs losses with | both signs start from |
|---|---|---|---|
| `pes` | K steps | the sum of the run's perturbations | their own states |
| `truncated-es` | K steps | this iteration's perturbation | the state of θ + ε |
| `full-es` | whole runs | this iteration's perturbation | a new initialisation |
| `noise-reuse-es` | K steps | the run's one perturbation | their own states |

The first is unbiased, with a variance that grows with the run. The second ignores the effect of a
perturbation beyond its own K steps: it has small variance, and a bias towards short-sighted rules. The third
is unbiased, and as slow as its longest run. The fourth is also unbiased: a run keeps its perturbation from
first step to last, so nothing accumulates. The estimator `full-reverse` perturbs nothing; its gradients come
from `celo2.meta.reverse`, and `average` averages them.

Source: arXiv 2112.13835, sections 2 and 3, which call them PES and ES; truncated evolution strategies
continue from one state for both signs, as in learned_optimization's estimator of that name; noise-reuse
evolution strategies: arXiv 2304.12180, algorithm 1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.meta import pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner.unroll import InnerState, Losses, select_pairs
from celo2.meta.pes import Estimate, Theta


class Restored(NamedTuple):
    """Pairs whose run, if it ends, continues from a saved state (`celo2.meta.inner.resume`).

    Attributes:
        resuming: Whether a pair does so, `(pairs,)` bool.
        accumulator: The accumulator at its saved state, leading axis `pairs`.
    """

    resuming: Array
    accumulator: Theta


def perturb(
    fresh: Theta,
    accumulator: Theta,
    starting: Array,
    config: MetaConfig,
    restored: Restored | None = None,
) -> Theta:
    """Selects each pair's perturbation for this outer iteration: a new one, or that of its run.

    Args:
        fresh: New perturbations, leading axis `pairs`.
        accumulator: With "noise-reuse-es", the perturbations of the runs; unused otherwise.
        starting: Whether a pair's run starts with this iteration, `(pairs,)` bool.
        config: The recipe.
        restored: Pairs whose run continues from a saved state if it ends; None: none does.
    """
    if config.estimator != "noise-reuse-es":
        return fresh
    if restored is not None:
        fresh = select_pairs(restored.resuming, restored.accumulator, fresh)
    return select_pairs(starting, fresh, accumulator)


def mask_unread(perturbation: Theta, config: MetaConfig) -> Theta:
    """Zeroes the perturbation of unused weights, whose gradient would be pure noise.

    These are the weights of unused outputs of the last layer.

    Args:
        perturbation: Leading axis `pairs`.
        config: The recipe.
    """
    if config.member is not None:
        return perturbation
    layer, read = config.rule.ff_hidden_layers, config.rule.num_outputs_read
    first = {name for name, _ in config.rule.feature_groups(2)}
    names = sorted(perturbation.keys() & {f"b{layer}", *({f"w{layer}"} if layer else first)})
    return {**perturbation, **{name: perturbation[name].at[..., read:].set(0.0) for name in names}}


def estimate(
    losses: Losses,
    perturbation: Theta,
    accumulator: Theta,
    config: MetaConfig,
    restored: Restored | None = None,
) -> Estimate:
    """Estimates the meta-gradient of one outer iteration.

    Args:
        losses: The measured losses, `(steps, pairs)`.
        perturbation: The perturbation ε, leading axis `pairs`.
        accumulator: Sum of the runs' earlier perturbations, leading axis `pairs`; with "noise-reuse-es",
            which accumulates nothing, their perturbations; otherwise zero, and returned unchanged.
        config: The recipe.
        restored: Pairs whose run continued from a saved state if it ended; None: none did.
    """
    reuses = config.estimator == "noise-reuse-es"
    zeros = jax.tree.map(jnp.zeros_like, accumulator)
    sums = None
    if restored is not None and config.estimator == "pes":
        sums = select_pairs(restored.resuming, restored.accumulator, zeros)
    found = pes.estimate(
        losses.positive,
        losses.negative,
        losses.is_done,
        perturbation,
        zeros if reuses else accumulator,
        sigma=config.sigma,
        weight=losses.weight,
        sign_scale=config.sign_scale if config.loss_difference == "sign" else 0.0,
        restored=sums,
    )
    if config.estimator == "pes":
        return found
    return found._replace(accumulator=perturbation if reuses else accumulator)


def average(gradients: Theta, losses: Losses, accumulator: Theta) -> Estimate:
    """Averages the normalised gradients of "full-reverse", with their signal-to-noise ratio.

    If no pair has a gradient, as when all runs diverge, the mean is NaN, so that the iteration is skipped.

    Args:
        gradients: The gradients of all pairs, leading axis `pairs`.
        losses: Their losses, the positive and negative ones equal.
        accumulator: Returned unchanged.
    """
    has_any = jnp.any(jnp.stack([jnp.any(each != 0.0) for each in gradients.values()]))
    mean = {name: jnp.where(has_any, jnp.mean(each, axis=0), jnp.nan) for name, each in gradients.items()}
    mean_loss = jnp.mean(jnp.sum(losses.weight * losses.positive, axis=0))
    return Estimate(mean, accumulator, mean_loss, pes.signal_to_noise(mean, gradients), gradients)


def next_start(inner: InnerState, config: MetaConfig) -> InnerState:
    """Returns the states from which the runs continue in the next outer iteration."""
    if config.estimator != "truncated-es":
        return inner

    def both(array: Array) -> Array:
        return jnp.broadcast_to(array[:, :1], array.shape)

    return inner._replace(
        params=jax.tree.map(both, inner.params), opt_state=jax.tree.map(both, inner.opt_state)
    )
