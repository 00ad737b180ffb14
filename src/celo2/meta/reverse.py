"""Reverse-mode meta-gradients: through whole inner runs, or through a few steps and mixed in.

`differentiate_runs`, for the estimator "full-reverse", backpropagates the meta-loss of each inner run from
its last step to its first. This gradient has no noise from random directions, only that of tasks and
batches, and is not short-sighted. Where inner training is chaotic (at high learning rates, in long runs),
single gradients explode; `normalize` bounds what one run contributes, so the mean is no unbiased estimate.
Losses at the ceiling have no derivative, and a run whose gradient is not finite is left out.

`compute_gradients`, for `reverse_steps` R above zero, adds to each pair of evolution strategies the gradient
of its meta-loss over the first R steps of the truncation, at the unperturbed theta. `combine` averages the
two with weights inverse to their variances,

    g = (g_es / v_es + g_rev / v_rev) / (1 / v_es + 1 / v_rev),

separately for each number of theta, where v is the variance of a mean over the pairs, estimated from the
pairs. Where backpropagation explodes, so does v_rev, and evolution strategies decide alone.

Source: Metz et al., "Understanding and correcting pathologies in the training of learned optimizers"
(arXiv 1810.10180), where both estimates are unbiased and see the same steps. Here g_rev is biased: it ignores
theta's effect on losses after the R steps, its effect before them, and the smoothing by σ. The weights do not
account for bias: the smaller R, the less noise, and the more of the mean is short-sighted.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.jax import dispatch
from celo2.meta.config import MetaConfig
from celo2.meta.estimators import mask_unread
from celo2.meta.inner.families import Group, make_groups
from celo2.meta.inner.unroll import InnerState, Losses, Restart, make_step, unroll_full
from celo2.meta.pes import Theta
from celo2.tasks.families.base import TaskData


def differentiate_runs(
    theta: Theta, pair_keys: Sequence[Array], sets: Sequence[Array], data: TaskData, *, config: MetaConfig
) -> tuple[tuple[Losses, ...], tuple[Theta, ...]]:
    """Trains whole runs and differentiates their meta-losses with respect to theta.

    The runs are those of `unroll_full` with the same keys, one for each pair, at the unperturbed theta.

    Args:
        theta: The weights.
        pair_keys: A key for each pair, as in `unroll_groups`.
        sets: Data set of each pair.
        data: The data that the families draw from.
        config: The recipe.

    Returns:
        For each group, the losses, with the positive and negative ones equal; and the gradients of its pairs,
        leading axis `pairs`: zero for frozen arrays and unused outputs, and not finite where backpropagation
        overflows.
    """
    groups = make_groups(config)
    parts = zip(groups, pair_keys, sets, strict=True)
    done = [_differentiate_runs(theta, *part, data, config) for part in parts]
    return tuple(losses for losses, _ in done), tuple(gradients for _, gradients in done)


def _differentiate_runs(
    theta: Theta, group: Group, keys: Array, index: Array, data: TaskData, config: MetaConfig
) -> tuple[Losses, Theta]:
    thetas, trained = _copy_for_pairs(theta, len(keys), config)
    shared = data.of(group.source)

    def total_loss(trained: Theta) -> tuple[Array, Losses]:
        with dispatch.use("matmul"):
            _, losses = unroll_full(
                {**thetas, **trained},
                None,
                keys,
                index,
                shared,
                config,
                family=group.family,
                rematerialize=True,
            )
        return jnp.sum(losses.weight * losses.positive), losses

    gradients, losses = jax.grad(total_loss, has_aux=True)(trained)
    return losses, _complete(gradients, thetas, config)


def normalize(gradients: Theta) -> Theta:
    """Divides the gradients of one family's runs by their norms, or by the median norm where that is larger.

    A run then contributes a vector of norm at most 1, even if its gradient explodes, and a family counts by
    its number of runs, whatever the size of its gradients. Gradients whose squared norm is not finite in
    float32 become zero, and zero stays zero.

    Args:
        gradients: Leading axis `pairs`.
    """
    norms = jax.vmap(optax.tree.norm)(gradients)
    norms = jnp.where(jnp.isfinite(norms), norms, jnp.nan)
    divisor = jnp.maximum(norms, jnp.nanquantile(norms, 0.5, method="lower"))  # if half of them explode, too
    factor = jnp.where(divisor > 0.0, 1.0 / divisor, 0.0)  # also zero for NaN

    def scale(gradient: Theta, factor: Array) -> Theta:
        return {name: jnp.where(factor > 0.0, factor * array, 0.0) for name, array in gradient.items()}

    return jax.vmap(scale)(gradients, factor)


def compute_gradients(
    theta: Theta,
    states: Sequence[InnerState],
    pair_keys: Sequence[Array],
    sets: Sequence[Array],
    data: TaskData,
    restarts: Sequence[Restart] = (),
    *,
    config: MetaConfig,
) -> tuple[Theta, ...]:
    """Differentiates each pair's meta-loss over the next `reverse_steps` steps with respect to theta.

    The runs continue, at the unperturbed theta, from the states under θ + ε: perturbations are symmetric, so
    states under θ - ε have the same distribution, and one sign costs half as much. Batches, new tasks and
    resets are those of the truncation that `unroll` runs with the same keys. Losses are weighted by
    `loss_weight` as in a truncation of `reverse_steps` steps, so the meta-loss remains a mean over steps.
    Memory holds one step, and one state per step: steps are recomputed (`jax.checkpoint`).

    Args:
        theta: The unperturbed weights.
        states: The states of each group's runs at the start of the truncation.
        pair_keys: A key for each pair, as in `unroll_groups`.
        sets: Data set of each pair.
        data: The data that the families draw from.
        restarts: Saved states from which runs continue, as in `unroll_groups`.
        config: The recipe, whose `reverse_steps` is above zero.

    Returns:
        For each group, the gradients of its pairs, leading axis `pairs`: zero for frozen arrays and unused
        outputs, and not finite where backpropagation overflows.
    """
    groups = make_groups(config)
    parts = zip(groups, states, pair_keys, sets, restarts or [None] * len(groups), strict=True)
    return tuple(_differentiate(theta, *part, data, config) for part in parts)


def _differentiate(
    theta: Theta,
    group: Group,
    state: InnerState,
    keys: Array,
    index: Array,
    restart: Restart | None,
    data: TaskData,
    config: MetaConfig,
) -> Theta:
    """Computes the gradients of one group's pairs, each with its own copy of theta, for one sign."""
    thetas, trained = _copy_for_pairs(theta, len(keys), config)
    state = _first_sign(state)
    restart = restart and restart._replace(runs=_first_sign(restart.runs))
    shared = data.of(group.source)

    def total_loss(trained: Theta) -> Array:
        draw, step = make_step(
            {**thetas, **trained}, keys, index, shared, config, family=group.family, restart=restart
        )
        draws = draw(jnp.arange(config.reverse_steps))
        with dispatch.use("matmul"):
            _, losses = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), state, draws)
        per_step = config.truncation_length / config.reverse_steps
        return per_step * jnp.sum(losses.weight * losses.positive)

    return _complete(jax.grad(total_loss)(trained), thetas, config)


def _copy_for_pairs(theta: Theta, num_pairs: int, config: MetaConfig) -> tuple[Theta, Theta]:
    """Gives each pair a copy of theta with one sign; returns all arrays, and those that are trained."""
    thetas = {name: jnp.broadcast_to(array, (num_pairs, 1, *array.shape)) for name, array in theta.items()}
    return thetas, {name: array for name, array in thetas.items() if name not in config.frozen_names}


def _complete(gradients: Theta, thetas: Theta, config: MetaConfig) -> Theta:
    """Removes the axis of the signs; frozen arrays and unused outputs get zeros."""
    found = jax.tree.map(jnp.zeros_like, thetas) | gradients
    return mask_unread({name: array[:, 0] for name, array in found.items()}, config)


def _first_sign(state: InnerState) -> InnerState:
    params, opt_state = jax.tree.map(lambda array: array[:, :1], (state.params, state.opt_state))
    return state._replace(params=params, opt_state=opt_state)


def join_gradients(gradients: Sequence[Theta]) -> Theta:
    """Concatenates the pairs of all groups."""
    if len(gradients) == 1:
        return gradients[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *gradients)


def combine(es_gradients: Theta, reverse_gradients: Theta) -> tuple[Theta, Array]:
    """Averages two estimates of the meta-gradient elementwise, weighted by inverse variance.

    A pair whose reverse-mode gradient contains a non-finite number, or is zero everywhere (its losses are at
    the ceiling), is excluded from that mean and its variance, which favours pairs that do not explode. A
    variance of zero is an infinite weight: where all pairs find that a number has no effect, the result is
    zero. Only the estimate by evolution strategies is used where both variances are zero, where fewer than
    two pairs count, and where a variance overflows. If it is not finite itself, neither is the result.

    Args:
        es_gradients: The gradients of the pairs by evolution strategies, leading axis `pairs`, at least two.
        reverse_gradients: Those of `compute_gradients`, of the same shapes.

    Returns:
        The mean gradient, a tree like theta; and the weight of the reverse-mode gradient in it, `()` in
        [0, 1], averaged over the numbers with a nonzero variance.
    """
    is_counted = jnp.stack(
        [
            jnp.stack([jnp.all(jnp.isfinite(array), axis=axes), jnp.any(array != 0.0, axis=axes)])
            for array in reverse_gradients.values()
            for axes in [tuple(range(1, array.ndim))]
        ]
    )
    is_counted = is_counted[:, 0].all(axis=0) & is_counted[:, 1].any(axis=0)
    combined = {
        name: _combine_array(array, reverse_gradients[name], is_counted)
        for name, array in es_gradients.items()
    }
    total = sum(jnp.sum(share) for _, share, _ in combined.values())
    number = sum(jnp.sum(varies).astype(jnp.float32) for _, _, varies in combined.values())
    gradient = {name: mean for name, (mean, _, _) in combined.items()}
    return gradient, total / jnp.maximum(number, 1.0)


def _combine_array(
    es_gradients: Array, reverse_gradients: Array, is_counted: Array
) -> tuple[Array, Array, Array]:
    """Returns the mean, the weight of the reverse-mode gradient, and where a variance is nonzero."""
    es_mean, es_variance = _mean_and_variance(es_gradients, jnp.ones_like(is_counted))
    mean, variance = _mean_and_variance(reverse_gradients, is_counted)
    larger = jnp.maximum(es_variance, variance)
    is_usable = jnp.isfinite(larger) & (larger > 0.0)
    # Dividing by the larger of the two keeps the weights from overflowing or vanishing together.
    es_weight, weight = variance / larger, es_variance / larger
    share = jnp.where(is_usable, weight / (es_weight + weight), 0.0)
    return jnp.where(is_usable, (1.0 - share) * es_mean + share * mean, es_mean), share, larger > 0.0


def _mean_and_variance(gradients: Array, is_counted: Array) -> tuple[Array, Array]:
    """Computes the mean over the pairs that count, `(pairs,)` bool, and the variance of that mean."""
    is_counted = is_counted.reshape(is_counted.shape + (1,) * (gradients.ndim - 1))
    count = jnp.sum(is_counted).astype(gradients.dtype)
    mean = jnp.sum(jnp.where(is_counted, gradients, 0.0), axis=0) / count
    squares = jnp.where(is_counted, jnp.square(gradients - mean[None]), 0.0)
    return mean, jnp.sum(squares, axis=0) / (count * (count - 1.0))
