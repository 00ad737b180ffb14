"""Unrolls inner training: K steps of each antithetic pair with resets, or whole runs.

A pair is one task trained twice, under θ + ε and under θ - ε, from the same start, on the same
batches and for the same number of steps. Runs have log-uniform lengths. First runs begin at a random step, so
that they do not reset together; an ended run starts over on a new task, or continues from a saved state
(`celo2.meta.inner.resume`). Whole runs restart in each outer iteration. The pairs of one call belong to one
family, whose trees they share.

The module also draws each run's learning rates (`sample_rates`, `rate_share`) and turns losses into
meta-losses (`Losses`, `loss_weight`, `scale_loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.meta.config import MetaConfig, Schedule
from celo2.meta.inner.optimizer import make_inner_optimizer
from celo2.meta.pes import Theta
from celo2.meta.task_sets import END_SHARE
from celo2.tasks.base import Batch, Params
from celo2.tasks.families import FAMILIES
from celo2.tasks.families.augmentation import log_uniform, parse_mixture
from celo2.tasks.families.base import FamilyData, TaskFamily, TextData

NUM_SIGNS = 2  # θ + ε and θ - ε
PUBLISHED = "mlp"  # the family of the published recipe

SharedData = FamilyData | TextData | None  # data shared by the tasks of one family


class InnerState(NamedTuple):
    """The inner runs of all pairs; every array has the leading axis `pairs`.

    Attributes:
        params: Stored parameters of both signs, `(pairs, 2, …)`.
        opt_state: The inner optimizer's state, `(pairs, 2, …)`.
        scales: The task's scales, `(pairs, …)`.
        rates: Peak learning rate of each stored array, in units of `inner_learning_rate`, `(pairs, …)`.
        step: Steps taken so far, `(pairs,)` int32.
        length: Steps after which the run ends, `(pairs,)` int32.
        problem: The task's own data if its family shares none, `(pairs, …)`.
    """

    params: Params
    opt_state: Any
    scales: Params
    rates: Params
    step: Array
    length: Array
    problem: Any = ()


class Restart(NamedTuple):
    """Saved states from which pairs continue when their run ends; see `celo2.meta.inner.resume`.

    Attributes:
        runs: The saved runs, leading axis `pairs`.
        resuming: Whether a pair continues from its saved run instead of a new task, `(pairs,)` bool.
    """

    runs: InnerState
    resuming: Array


class Draws(NamedTuple):
    """The random draws that determine one step's batches, `(pairs, …)`; see `TaskFamily.sample_draw`."""

    training: Array
    held_out: Array | None


class _Advance(NamedTuple):
    """New starts of one outer iteration, its draws (of steps `(n,)`, leading axis `n`), and its step."""

    fresh: InnerState
    draw: Callable[[Array], Draws]
    step: Callable[[InnerState, Draws], tuple[InnerState, Losses]]


def make_family(config: MetaConfig, name: str = PUBLISHED) -> TaskFamily:
    """Makes a task family with the options of a recipe."""
    return FAMILIES.find(name)(
        batch_size=config.batch_size,
        level=config.level,
        scale_range=config.scale_range,
        mixture=parse_mixture(config.mixture, config.scale_range),
    )


def init_pairs(pair_keys: Array, theta: Theta, config: MetaConfig, *, family: str = PUBLISHED) -> InnerState:
    """Initialises the runs of the first truncation, each at a random step within its length.

    Args:
        pair_keys: A key for each pair, `(pairs,)`.
        theta: The rule's unperturbed weights; only their shapes matter for Celo2.
        config: The recipe.
        family: The pairs' family, by name.
    """

    def init(key: Array) -> InnerState:
        start_key, offset_key = jax.random.split(key)
        state = _sample_start(start_key, _for_signs(theta, NUM_SIGNS), family, config)
        unit = _length_unit(config)
        return state._replace(step=unit * jax.random.randint(offset_key, (), 0, state.length // unit))

    return jax.vmap(init)(pair_keys)


def unroll(
    thetas: Theta,
    state: InnerState,
    pair_keys: Array,
    set_index: Array,
    data: SharedData,
    config: MetaConfig,
    *,
    family: str = PUBLISHED,
    restart: Restart | None = None,
) -> tuple[InnerState, Losses]:
    """Runs K inner steps of each pair.

    Args:
        thetas: The weights of each run, `(pairs, 2, …)`.
        state: The current states of the runs.
        pair_keys: A key for each pair, `(pairs,)`.
        set_index: Data set of each pair, `(pairs,)` int32.
        data: The family's data, from `stack_datasets` or `stack_texts` with the splits
            `config.splits`; None if it shares no data.
        config: The recipe.
        family: The pairs' family, by name.
        restart: Saved states from which some of the ended runs continue; None: new tasks for all.

    Raises:
        ValueError: The recipe uses the held-out meta-loss and `data` has no held-out splits.
    """
    draw, step = make_step(thetas, pair_keys, set_index, data, config, family=family, restart=restart)
    return jax.lax.scan(step, state, draw(jnp.arange(config.truncation_length)))


def make_step(
    thetas: Theta,
    pair_keys: Array,
    set_index: Array,
    data: SharedData,
    config: MetaConfig,
    *,
    family: str = PUBLISHED,
    restart: Restart | None = None,
) -> tuple[Callable[[Array], Draws], Callable[[InnerState, Draws], tuple[InnerState, Losses]]]:
    """Makes the inner step of a truncation, which resets ended runs, and the draws of its batches.

    The arguments and errors are those of `unroll`, except that the axis of the signs may have length 1; the
    positive and negative losses are then equal.

    Returns:
        `draw`, which maps step numbers within the truncation `(n,)` to draws with a leading axis `n`; and
        `step`, `(state, draws) → (state, losses)`, with losses `(pairs,)`.
    """
    fresh, draw, advance = _make_advance(thetas, pair_keys, set_index, data, family, config)
    if restart is not None:
        lengthened = restart.runs._replace(length=restart.runs.step + fresh.length)
        fresh = select_pairs(restart.resuming, lengthened, fresh)

    def step(state: InnerState, draws: Draws) -> tuple[InnerState, Losses]:
        is_done = state.step >= state.length
        state = jax.lax.cond(jnp.any(is_done), lambda: select_pairs(is_done, fresh, state), lambda: state)
        state, losses = advance(state, draws)
        return state, losses._replace(is_done=is_done)

    return draw, step


def unroll_full(
    thetas: Theta,
    state: InnerState | None,
    pair_keys: Array,
    set_index: Array,
    data: SharedData,
    config: MetaConfig,
    *,
    family: str = PUBLISHED,
    rematerialize: bool = False,
) -> tuple[InnerState, Losses]:
    """Runs each pair from a new start to the end of its length.

    All pairs take steps until the longest run has ended, in segments of K; after a run's own end its
    parameters stay, and its losses have weight zero. The result does not depend on K.

    The arguments and errors are those of `unroll`, except that the runs in `state` are discarded, and the
    axis of the signs may have length 1, as in `make_step`. With `rematerialize`, differentiating the losses
    keeps one state per segment, and one per step of the current segment, and recomputes everything else.

    Returns:
        The final states of the runs, and losses of at least `max_unroll` steps; `is_done` is false.
    """
    del state
    fresh, draw, advance = _make_advance(thetas, pair_keys, set_index, data, family, config)
    length = config.truncation_length
    num_pieces = -(-config.max_unroll // length)
    remember = partial(jax.checkpoint, prevent_cse=False) if rematerialize else lambda function: function

    @remember
    def advance_or_hold(state: InnerState, draws: Draws) -> tuple[InnerState, Losses]:
        after, losses = advance(state, draws)
        # Beyond its end a cosine rises again; a run that overflowed there would have a derivative of NaN.
        held = select_pairs(state.step < state.length, after, state)
        return held._replace(step=after.step), losses

    def run(state: InnerState, piece: Array) -> tuple[InnerState, Losses]:
        return jax.lax.scan(advance_or_hold, state, draw(piece * length + jnp.arange(length)))

    def run_unless_ended(state: InnerState, piece: Array) -> tuple[InnerState, Losses]:
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, state, piece)[1])
        is_running = jnp.any(state.step < state.length)
        return jax.lax.cond(is_running, run, lambda state, _: (state, nothing), state, piece)

    state, losses = jax.lax.scan(remember(run_unless_ended), fresh, jnp.arange(num_pieces))
    return state, jax.tree.map(lambda x: x.reshape(num_pieces * length, *x.shape[2:]), losses)


def _make_advance(
    thetas: Theta,
    pair_keys: Array,
    set_index: Array,
    data: SharedData,
    family_name: str,
    config: MetaConfig,
) -> _Advance:
    """Prepares new starts and one step of all pairs, with keys from `pair_keys` and the step number."""
    family = make_family(config, family_name)
    start_keys, batch_keys = jnp.moveaxis(jax.vmap(jax.random.split)(pair_keys), 1, 0)
    fresh = jax.vmap(lambda key, pair: _sample_start(key, pair, family_name, config))(start_keys, thetas)
    step_pairs = jax.vmap(_make_step(family, config))
    num_sets = len(config.sets_of(family.source))
    if config.meta_loss == "held-out" and data is not None:
        _check_held_out(data, num_sets, config)

    def draw(step_index: Array) -> Draws:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(batch_keys, step_index)
        if config.meta_loss != "held-out":
            return Draws(family.sample_draws(keys, data, set_index), None)
        keys, held_out_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        held_out = family.sample_draws(held_out_keys, data, set_index + num_sets)
        return Draws(family.sample_draws(keys, data, set_index), held_out)

    def advance(state: InnerState, draws: Draws) -> tuple[InnerState, Losses]:
        make = partial(family.make_batches, data=data, problems=state.problem)
        held_out = None if draws.held_out is None else make(draws.held_out)
        params, opt_state, losses = step_pairs(thetas, state, make(draws.training), held_out)
        finite = jnp.isfinite(losses)
        clipped = scale_loss(jnp.where(finite, losses, family.loss_ceiling), family.loss_ceiling, config)
        if config.expert:
            clipped = clipped + config.expert_weight * opt_state.loss
        after = state._replace(params=params, opt_state=opt_state, step=state.step + 1)
        return after, Losses(
            positive=clipped[:, 0],
            negative=clipped[:, -1],
            is_done=jnp.zeros(state.step.shape, bool),
            diverged=jnp.sum(~finite, axis=1),
            is_running=state.step < state.length,
            is_last=state.step == state.length - 1,
            weight=loss_weight(state.step, state.length, config),
        )

    return _Advance(fresh, jax.vmap(draw), advance)


def _check_held_out(data: FamilyData | TextData, num_sets: int, config: MetaConfig) -> None:
    found = data.sizes.shape[0]
    if found != num_sets * len(config.splits):
        raise ValueError(
            f"meta_loss={config.meta_loss!r} needs the splits {config.splits} of {num_sets} sets, got "
            f"{found} sets in all; use stack_datasets(…, splits=config.splits)."
        )


def _for_signs(tree: Any, num_signs: int) -> Any:
    """Repeats a tree for each sign, on a new first axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_signs, *leaf.shape)), tree)


def _length_unit(config: MetaConfig) -> int:
    """Returns the unit of run lengths: runs under one perturbation end with a truncation."""
    return config.truncation_length if config.estimator == "noise-reuse-es" else 1


def _sample_length(key: Array, config: MetaConfig) -> Array:
    """Draws the length of a new inner run, `()` int32."""
    if config.unroll_law == "uniform":
        length = jax.random.randint(key, (), config.min_unroll, config.max_unroll + 1)
    else:
        length = log_uniform(key, config.min_unroll, config.max_unroll).astype(jnp.int32)
    unit = _length_unit(config)
    return (length + unit - 1) // unit * unit


def _sample_start(key: Array, thetas: Theta, family_name: str, config: MetaConfig) -> InnerState:
    """Draws a new task for one pair, at step 0; theta may set the initial state of each sign's optimizer."""
    family = make_family(config, family_name)
    task_key, length_key, rate_key = jax.random.split(key, 3)
    problem = ()
    if family.source == "problem":
        task_key, problem_key = jax.random.split(task_key)
        problem = family.sample_problem(problem_key)
    stored, scales = family.init(task_key)
    rates = sample_rates(rate_key, scales, config, config.rate_factors.get(family_name, 1.0))
    length = _sample_length(length_key, config)
    opt_state = jax.vmap(lambda theta: make_inner_optimizer(theta, config, length).init(stored))(thetas)
    step = jnp.zeros((), jnp.int32)
    params = _for_signs(stored, len(next(iter(thetas.values()))))
    return InnerState(params, opt_state, scales, rates, step, length, problem)


def _make_step(family: TaskFamily, config: MetaConfig) -> Callable[..., tuple[Params, Any, Array]]:
    """Makes the step of one pair: `(thetas, state, batch, held_out) → (params, opt_state, both losses)`.

    The losses are measured before the step, on the held-out batch if there is one, else on the batch.
    """

    def step_one(
        theta: Theta,
        params: Params,
        opt_state: Any,
        scales: Params,
        batch: Batch,
        held_out: Batch | None,
        rates: Params,
        length: Array,
    ) -> tuple[Params, Any, Array]:
        loss, grads = jax.value_and_grad(family.loss)(params, scales, batch)
        if config.inner_clip:
            grads, _ = optax.clip_by_global_norm(config.inner_clip).update(grads, optax.EmptyState())
        optimizer = make_inner_optimizer(theta, config, length)
        updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
        if held_out is not None:
            loss = family.loss(params, scales, held_out)
        return jax.tree.map(lambda p, u, rate: p + rate * u, params, updates, rates), opt_state, loss

    def step_pair(
        thetas: Theta, state: InnerState, batch: Batch, held_out: Batch | None
    ) -> tuple[Params, Any, Array]:
        signs = jax.vmap(step_one, in_axes=(0, 0, 0, None, None, None, None, None))
        share = rate_share(state.step, state.length, config.inner_schedule)
        rates = jax.tree.map(lambda rate: share * rate, state.rates)
        return signs(
            thetas, state.params, state.opt_state, state.scales, batch, held_out, rates, state.length
        )

    return step_pair


def select_pairs(mask: Array, new: Any, old: Any) -> Any:
    """Selects between two trees of arrays with the leading axis `pairs`, by a mask `(pairs,)`."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def sample_rates(key: Array, scales: Params, config: MetaConfig, family_factor: float = 1.0) -> Params:
    """Draws the task's rate factors; in network units, an array's rate falls as its scale grows."""
    factor = family_factor * log_uniform(key, 1.0 / config.rate_spread, config.rate_spread)
    return jax.tree.map(lambda scale: factor / scale if config.rate_units == "network" else factor, scales)


def rate_share(step: Array, length: Array, schedule: Schedule) -> Array:
    """Returns the learning rate at a step of a run as a share of its peak, in [0, 1]."""
    if schedule == "constant":
        return jnp.ones((), jnp.float32)
    progress = step.astype(jnp.float32) / length.astype(jnp.float32)
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


LEAST_LOSS = 1e-3  # floor before the logarithm; an untrained network scores log(10)


class Losses(NamedTuple):
    """Measurements of the inner steps, each `(steps, pairs)`; a truncation has K steps.

    Attributes:
        positive: Meta-loss under θ + ε: `scale_loss`, and with an expert the weighted direction loss
            (`inner.expert`) of the step from there.
        negative: Meta-loss under θ - ε, likewise.
        is_done: Whether the run was reset just before this step, to a new task or to a saved state.
        diverged: Number of the pair's runs (0, 1 or 2) whose loss was not finite.
        is_running: Whether the step was part of a run rather than after its end.
        is_last: Whether the step was the run's last.
        weight: Factor of the loss in its pair's meta-loss.
    """

    positive: Array
    negative: Array
    is_done: Array
    diverged: Array
    is_running: Array
    is_last: Array
    weight: Array


def loss_weight(step: Array, length: Array, config: MetaConfig) -> Array:
    """Computes the factor of a loss in its pair's meta-loss.

    The meta-loss is a mean over the truncation or, if whole runs are trained, over the run. If only final
    losses count, or those of the end of a run, the truncation that contains one represents all truncations of
    its run: the factor is their number, `mean_unroll / K`, so that the expected meta-loss is the final loss,
    or the mean of those at the end.

    Args:
        step: Steps that the run has taken, int32.
        length: Steps after which it ends, int32 of the same shape.
        config: The recipe.
    """
    is_full = config.trains_whole_runs
    factor = jnp.float32(1.0 if is_full else config.mean_unroll / config.truncation_length)
    if config.meta_loss == "final":
        return jnp.where(step == length - 1, factor, 0.0)
    if config.meta_loss == "end":
        num_counted = jnp.maximum(1.0, jnp.round(END_SHARE * length.astype(jnp.float32)))
        is_counted = (step >= length - num_counted.astype(jnp.int32)) & (step < length)
        return jnp.where(is_counted, factor / num_counted, 0.0)
    if is_full:
        return jnp.where(step < length, 1.0 / length.astype(jnp.float32), 0.0)
    return jnp.full(step.shape, 1.0 / config.truncation_length, jnp.float32)


def scale_loss(losses: Array, ceiling: float, config: MetaConfig) -> Array:
    """Maps finite losses to meta-losses: clipped to [0, ceiling], or the logarithms of these."""
    if config.loss_scale == "log":
        return jnp.log(jnp.clip(losses, LEAST_LOSS, ceiling))
    return jnp.clip(losses, 0.0, ceiling)
