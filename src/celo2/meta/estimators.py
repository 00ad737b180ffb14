"""Losses of pairs → meta-gradient, by the estimator that the recipe names.

| estimator | an outer iteration sees | weighs losses with | the two signs begin at |
|---|---|---|---|
| `pes` | K steps | the sum of the run's perturbations | where each of them stands |
| `truncated-es` | K steps | this iteration's perturbation | where θ + ε stands |
| `full-es` | whole runs | this iteration's perturbation | a new start |

The first is unbiased and has the largest variance. The second ignores what a perturbation does after its
own K steps: small variance, and a bias towards short-sighted rules. The third is unbiased, and as slow as
its longest run.

Source: arXiv 2112.13835, sections 2 and 3, where they are named PES and ES; truncated evolution strategies
go on from one state for both signs as in learned_optimization's estimator of that name.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from celo2.meta import pes
from celo2.meta.config import MetaConfig
from celo2.meta.losses import Losses
from celo2.meta.pes import Estimate, Theta
from celo2.meta.truncation import InnerState

__all__ = ["estimate", "next_start"]


def estimate(losses: Losses, perturbation: Theta, accumulator: Theta, config: MetaConfig) -> Estimate:
    """The meta-gradient of one outer iteration.

    Args:
        losses: What it measured, `(steps, pairs)`.
        perturbation: Its ε, leading axis `pairs`.
        accumulator: Sum of the runs' earlier perturbations, leading axis `pairs`; zero, and staying so,
            unless the estimator is "pes".
        config: The recipe.
    """
    found = pes.estimate(
        losses.positive,
        losses.negative,
        losses.is_done,
        perturbation,
        accumulator,
        sigma=config.sigma,
        weight=losses.weight,
        sign_scale=config.sign_scale if config.loss_difference == "sign" else 0.0,
    )
    return found if config.estimator == "pes" else found._replace(accumulator=accumulator)


def next_start(inner: InnerState, config: MetaConfig) -> InnerState:
    """Where the runs go on in the next outer iteration."""
    if config.estimator != "truncated-es":
        return inner

    def both(array: Array) -> Array:
        return jnp.broadcast_to(array[:, :1], array.shape)

    return inner._replace(
        params=jax.tree.map(both, inner.params), opt_state=jax.tree.map(both, inner.opt_state)
    )
