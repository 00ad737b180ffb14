"""Buffers inner states from which ended runs continue, so that rules are trained on longer runs.

Each pair keeps one state of its run: the one before its worst truncation or, if it never became worse than
before, the one before its last truncation. An ended run continues from there with probability
`resume_probability`, under the perturbations with which the state was reached, and the drawn length is added
to the steps taken; otherwise a new task begins.

A truncation is worse than before if its mean loss lies above the lowest of the run, and the worst if that
rise is the largest so far. The rise is `V` of the source, `V ← max(0, V + ℓ - ℓ_previous)`, where ℓ is the
mean loss of a truncation; its sum telescopes to ℓ minus the lowest so far.

Source: the resume buffer of ELO (arXiv 2607.06772). There the two kinds of states replace each other; here
the state of a rise is kept, since a run that continued from its end would merely be a longer run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.meta.config import MetaConfig
from celo2.meta.estimators import Restored
from celo2.meta.inner.families import split_pairs
from celo2.meta.inner.unroll import InnerState, Losses, Restart, select_pairs
from celo2.meta.pes import Theta

_RESUMPTION_KEY = 0x5E0E  # folded into the key of a pair, so that its other draws do not change


class Buffer(NamedTuple):
    """The saved state of each pair; every array has the leading axis `pairs` (in `runs`, that of a group).

    Attributes:
        runs: The inner runs of each group of pairs.
        accumulator: The estimator's accumulator with which a saved state was reached.
        is_filled: Whether there is a saved state, bool.
        lowest: Lowest mean loss of a truncation since the run began.
        rise: Largest rise of a truncation's mean loss above the lowest before it, 0 if there was none.
    """

    runs: tuple[InnerState, ...]
    accumulator: Theta
    is_filled: Array
    lowest: Array
    rise: Array


def init(runs: tuple[InnerState, ...], accumulator: Theta) -> Buffer:
    """Makes a buffer without saved states.

    Args:
        runs: The runs of each group of pairs, for their shapes.
        accumulator: The estimator's accumulator, leading axis `pairs`.
    """
    (num_pairs,) = {array.shape[0] for array in accumulator.values()}
    none, rise = jnp.zeros(num_pairs, bool), jnp.zeros(num_pairs)
    runs, accumulator = jax.tree.map(jnp.copy, (runs, accumulator))  # so that no array is donated twice
    return Buffer(runs, accumulator, none, jnp.full(num_pairs, jnp.inf), rise)


def save_ending(
    buffer: Buffer, runs: tuple[InnerState, ...], accumulator: Theta, count: Array, config: MetaConfig
) -> Buffer:
    """Saves the states of runs that end in the next truncation and have never become worse than before.

    Nothing is saved before the first outer iteration: with "noise-reuse-es" no run has a perturbation yet.

    Args:
        buffer: The saved states so far.
        runs: The runs of each group before the truncation.
        accumulator: The estimator's accumulator before the truncation.
        count: Number of outer iterations so far.
        config: The recipe.
    """
    step, length = (_join([getattr(group, name) for group in runs]) for name in ("step", "length"))
    ends = (step < length) & (length <= step + config.truncation_length)
    return _save(buffer, ends & (buffer.rise == 0) & (count > 0), runs, accumulator, config)


def save_rising(
    buffer: Buffer, runs: tuple[InnerState, ...], accumulator: Theta, losses: Losses, config: MetaConfig
) -> Buffer:
    """Saves the states before a truncation with the largest rise of the loss in the run so far.

    Args:
        buffer: The saved states so far.
        runs: The runs of each group before the truncation.
        accumulator: The estimator's accumulator before the truncation.
        losses: Losses of the truncation, `(steps, pairs)`.
        config: The recipe.
    """
    since_reset = jnp.cumsum(losses.is_done, axis=0) > 0
    was_reset = since_reset[-1]
    of_this_run = jnp.where(was_reset, since_reset, True)
    mean = jnp.mean((losses.positive + losses.negative) / 2.0, axis=0, where=of_this_run)
    rise = jnp.where(was_reset, 0.0, mean - buffer.lowest)
    buffer = _save(buffer, rise > buffer.rise, runs, accumulator, config)
    return buffer._replace(
        lowest=jnp.where(was_reset, mean, jnp.minimum(buffer.lowest, mean)),
        rise=jnp.where(was_reset, 0.0, jnp.maximum(buffer.rise, rise)),
    )


def draw(pair_keys: Array, buffer: Buffer, config: MetaConfig) -> tuple[Restored, tuple[Restart, ...]]:
    """Draws which pairs continue from their saved state if their run ends in this outer iteration.

    Args:
        pair_keys: A key for each pair, `(pairs,)`.
        buffer: The saved states.
        config: The recipe.

    Returns:
        The drawn pairs for the estimator; and those of each group, with the saved runs.
    """
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _RESUMPTION_KEY))(pair_keys)
    resuming = (jax.vmap(jax.random.uniform)(keys) < config.resume_probability) & buffer.is_filled
    groups = zip(buffer.runs, split_pairs(resuming, config), strict=True)
    return Restored(resuming, buffer.accumulator), tuple(Restart(*group) for group in groups)


def _save(
    buffer: Buffer, wanted: Array, runs: tuple[InnerState, ...], accumulator: Theta, config: MetaConfig
) -> Buffer:
    """Saves the states of the selected pairs, `(pairs,)` bool, whose parameters are finite."""
    saved = wanted & _join([_is_finite(group.params) for group in runs])
    groups = zip(split_pairs(saved, config), runs, buffer.runs, strict=True)
    return buffer._replace(
        runs=tuple(select_pairs(*group) for group in groups),
        accumulator=select_pairs(saved, accumulator, buffer.accumulator),
        is_filled=buffer.is_filled | saved,
    )


def _is_finite(params: Any) -> Array:
    """Returns whether all parameters of a pair are finite, `(pairs,)` bool."""
    each = [jnp.isfinite(array).all(axis=range(1, array.ndim)) for array in jax.tree.leaves(params)]
    return jnp.stack(each).all(axis=0)


def _join(parts: list[Array]) -> Array:
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]
