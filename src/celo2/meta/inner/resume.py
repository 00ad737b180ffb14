"""Buffer of inner states from which ended runs continue, so that rules are trained on longer runs.

Each pair keeps one state: that before the truncation in which its run did worse than ever, or ended, whatever
came last. A run that has ended continues from there with probability `resume_probability`, under the
perturbations that the state was reached with, and the length drawn is added to the steps taken; otherwise a
new task begins. So runs become many times longer than `max_unroll`, and an iteration costs no more.

A truncation does worse than those before if its mean loss rises further above the lowest of the run than it
ever did. That rise is `V` of the source, `V ← max(0, V + ℓ - ℓ_previous)` with ℓ the mean loss of a
truncation, whose sum telescopes to ℓ less the lowest so far.

Source: ELO (arXiv 2607.06772), the resume buffer.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.meta.config import MetaConfig
from celo2.meta.estimators import Restored
from celo2.meta.inner.unroll import InnerState, Losses, Restart, select_pairs
from celo2.meta.pes import Theta

_DRAW = 0x5E0E  # folded into the key of a pair, whose other draws stay as they are


class Buffer(NamedTuple):
    """The saved state of each pair; every array has the leading axis `pairs`, that of a group in `runs`.

    Attributes:
        runs: The inner runs of each group of pairs.
        accumulator: The estimator's accumulator with which a saved state was reached.
        is_filled: Whether there is a saved state, bool.
        lowest: Lowest mean loss of a truncation since the run began.
        rise: Largest rise of a truncation's mean loss above the lowest before it.
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


def draw(
    pair_keys: Array, buffer: Buffer | None, config: MetaConfig
) -> tuple[Restored | None, tuple[Restart, ...]]:
    """Draws which pairs continue from their saved state if their run ends in this outer iteration.

    Args:
        pair_keys: A key for each pair, `(pairs,)`.
        buffer: The saved states; None: no pair continues.
        config: The recipe.

    Returns:
        These pairs for the estimator, and for each group of pairs with the saved runs; None and nothing
        without a buffer.
    """
    if buffer is None:
        return None, ()
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _DRAW))(pair_keys)
    resuming = (jax.vmap(jax.random.uniform)(keys) < config.resume_probability) & buffer.is_filled
    return Restored(resuming, buffer.accumulator), _by_group(resuming, buffer)


def _by_group(resuming: Array, buffer: Buffer) -> tuple[Restart, ...]:
    """Returns, for each group of pairs, the saved runs and which pairs may continue from them."""
    ends = [0]
    for runs in buffer.runs:
        ends.append(ends[-1] + runs.step.shape[0])
    parts = zip(buffer.runs, ends, ends[1:], strict=False)
    return tuple(Restart(runs, resuming[first:last]) for runs, first, last in parts)


def update(buffer: Buffer, runs: tuple[InnerState, ...], accumulator: Theta, losses: Losses) -> Buffer:
    """Saves the states before a truncation of the pairs that did worse in it than before, or ended.

    A state whose first loss is not finite is not saved.

    Args:
        buffer: The saved states so far.
        runs: The runs of each group before the truncation.
        accumulator: The estimator's accumulator before the truncation.
        losses: Losses of the truncation, `(steps, pairs)`.
    """
    since_reset = jnp.cumsum(losses.is_done, axis=0) > 0
    was_reset = since_reset[-1]
    counted = jnp.where(was_reset, since_reset, True)  # the steps of the run that goes on
    mean = jnp.mean((losses.positive + losses.negative) / 2.0, axis=0, where=counted)
    rise = mean - buffer.lowest
    grew = (rise > buffer.rise) & ~was_reset
    saves = (grew | jnp.any(losses.is_last, axis=0)) & (losses.diverged[0] == 0)
    parts = zip(_by_group(saves, buffer), runs, strict=True)
    return Buffer(
        tuple(select_pairs(saving, new, old) for (old, saving), new in parts),
        select_pairs(saves, accumulator, buffer.accumulator),
        buffer.is_filled | saves,
        jnp.where(was_reset, mean, jnp.minimum(buffer.lowest, mean)),
        jnp.where(was_reset, 0.0, jnp.maximum(buffer.rise, rise)),
    )
