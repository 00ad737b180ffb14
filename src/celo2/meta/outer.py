"""Outer iterations of meta-training, and the outer optimizer.

An iteration perturbs theta, unrolls every pair, estimates the meta-gradient and updates theta; or, instead of
perturbing it, it differentiates whole runs. Several iterations are compiled into one program.
`make_outer_optimizer` builds the optimizer from the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from celo2.jax.runtime import compiler_options
from celo2.meta import estimators, pes, reverse
from celo2.meta.config import MetaConfig
from celo2.meta.inner import resume
from celo2.meta.inner.families import (
    check_devices,
    init_groups,
    join_losses,
    set_index,
    split_pairs,
    task_sizes,
    unroll_groups,
)
from celo2.meta.inner.theta import init_theta
from celo2.meta.inner.unroll import NUM_SIGNS, InnerState, Losses
from celo2.meta.pes import Theta
from celo2.meta.run.distributed import replicate
from celo2.tasks.families.base import TaskData

PAIRS = "pairs"  # name of the mesh axis
MAX_STEPS = 100  # upper limit of outer iterations in one call of the compiled program


class OuterState(NamedTuple):
    """State of a meta-training run, sufficient to resume it exactly.

    Attributes:
        theta: The rule's weights.
        opt_state: State of the outer optimizer.
        inner: The inner runs of each group of pairs, see `celo2.meta.inner.families`.
        accumulator: Sum of perturbations of each pair, for PES.
        count: Number of outer iterations so far; with the seed it determines all later random numbers.
        buffer: Saved states from which ended runs continue; None if the recipe has no `resume_probability`.
    """

    theta: Theta
    opt_state: Any
    inner: tuple[InnerState, ...]
    accumulator: Theta
    count: Array  # type: ignore[assignment]  # tuple.count is not meant
    buffer: resume.Buffer | None = None


class OuterMetrics(NamedTuple):
    """Metrics of one outer iteration, scalars except the first.

    Attributes:
        loss_per_task: Mean meta-loss of each of `families.task_names`; NaN if no loss counted.
        meta_loss: Mean meta-loss; NaN if no loss counted.
        grad_norm: Norm of the meta-gradient.
        signal_to_noise: Signal-to-noise ratio of the pairs' gradients, see `pes.Estimate`: of evolution
            strategies alone, if reverse mode is mixed in; normalised ones, with "full-reverse".
        diverged: Share of inner losses that were not finite.
        resets: Number of pairs that were reset, to a new task or to a saved state.
        ended_runs: Number of inner runs that took their last step: two of a pair, one with "full-reverse".
        diverged_runs: Number of these whose loss at that step was not finite.
        skipped: 1 if the meta-gradient or its update was not finite, so theta was left unchanged.
        resumed: Number of pairs that were reset to a saved state.
        reverse_share: Mean weight of the reverse-mode gradient, if one is mixed in, see `reverse.combine`.
    """

    loss_per_task: Array
    meta_loss: Array
    grad_norm: Array
    signal_to_noise: Array
    diverged: Array
    resets: Array
    ended_runs: Array
    diverged_runs: Array
    skipped: Array
    resumed: Array
    reverse_share: Array


def make_mesh() -> Mesh:
    """Makes a mesh of all devices of all processes along the axis of the pairs."""
    return jax.make_mesh((jax.device_count(),), (PAIRS,), axis_types=(AxisType.Auto,))


def init(config: MetaConfig, mesh: Mesh, optimizer: optax.GradientTransformation | None = None) -> OuterState:
    """Makes the state before the first iteration, with pairs sharded over the mesh.

    Args:
        config: The recipe.
        mesh: The devices.
        optimizer: See `make_outer_optimizer`.

    Raises:
        ValueError: The devices cannot share each family's pairs equally; see also `make_outer_optimizer`.
    """
    optimizer = make_outer_optimizer(config, optimizer)
    check_devices(config, mesh.shape[PAIRS])
    theta_key, pairs_key = jax.random.split(jax.random.key(config.seed))
    start = replicate(init_theta(theta_key, config), mesh)

    def make(theta: Theta) -> OuterState:
        accumulator = {
            name: jnp.zeros((config.num_pairs, *array.shape), array.dtype) for name, array in theta.items()
        }
        inner = init_groups(jax.random.split(pairs_key, config.num_pairs), theta, config)
        opt_state = optimizer.init(theta)
        buffer = resume.init(inner, accumulator) if config.resume_probability else None
        return OuterState(theta, opt_state, inner, accumulator, jnp.zeros((), jnp.int32), buffer)

    return jax.jit(make, out_shardings=_state_shardings(mesh))(start)


def _state_shardings(mesh: Mesh) -> OuterState:
    split = NamedSharding(mesh, PartitionSpec(PAIRS))
    whole = NamedSharding(mesh, PartitionSpec())
    shardings: Any = (whole, whole, split, split, whole, split)
    return OuterState(*shardings)


def make_outer_steps(
    config: MetaConfig, mesh: Mesh, optimizer: optax.GradientTransformation | None = None
) -> Callable[[OuterState, TaskData, ArrayLike], tuple[OuterState, OuterMetrics]]:
    """Compiles several outer iterations into one program that does not return to the host between them.

    Args:
        config: The recipe.
        mesh: The devices.
        optimizer: See `make_outer_optimizer`.

    Returns:
        `(state, data, num_steps) → (state, metrics)`. The given state is donated. `num_steps` is in
        [0, MAX_STEPS] and is not a compile-time constant. Each metric has a leading axis MAX_STEPS, of which
        the first `num_steps` entries are filled.
    """
    outer_step = _make_outer_step(config, mesh, optimizer)

    def outer_steps(
        state: OuterState, data: TaskData, num_steps: ArrayLike
    ) -> tuple[OuterState, OuterMetrics]:
        def body(index: Array, carry: tuple[OuterState, OuterMetrics]) -> tuple[OuterState, OuterMetrics]:
            state, found = outer_step(carry[0], data)
            return state, jax.tree.map(lambda all_, one: all_.at[index].set(one), carry[1], found)

        like = jax.eval_shape(outer_step, state, data)[1]
        empty = jax.tree.map(lambda one: jnp.zeros((MAX_STEPS, *one.shape), one.dtype), like)
        return jax.lax.fori_loop(0, num_steps, body, (state, empty))

    shardings = (_state_shardings(mesh), NamedSharding(mesh, PartitionSpec()))
    options = compiler_options(mesh.devices.flat[0].platform)
    return jax.jit(outer_steps, donate_argnums=0, out_shardings=shardings, compiler_options=options)


class _Measured(NamedTuple):
    """The result of an iteration's inner training, before theta is updated."""

    inner: tuple[InnerState, ...]
    losses: Losses
    estimate: pes.Estimate
    buffer: resume.Buffer | None = None
    restored: estimators.Restored | None = None
    reverse_share: ArrayLike = 0.0


_Measure = Callable[[OuterState, TaskData, Array, Array], _Measured]  # the keys: of the noise, of the pairs


def _make_outer_step(
    config: MetaConfig, mesh: Mesh, optimizer: optax.GradientTransformation | None
) -> Callable[[OuterState, TaskData], tuple[OuterState, OuterMetrics]]:
    optimizer = make_outer_optimizer(config, optimizer)
    is_exact = config.estimator == "full-reverse"
    measure = _make_differentiation(config, mesh) if is_exact else _make_evolution(config, mesh)

    def outer_step(state: OuterState, data: TaskData) -> tuple[OuterState, OuterMetrics]:
        run_key = jax.random.fold_in(jax.random.key(config.seed), state.count + 1)
        noise_key, pairs_key = jax.random.split(run_key)
        done = measure(state, data, noise_key, jax.random.split(pairs_key, config.num_pairs))
        theta, opt_state, skipped = _update_theta(
            optimizer, state, done.estimate.gradient, config.frozen_names
        )
        metrics = _compute_metrics(
            done, skipped, task_sizes=task_sizes(config), num_signs=1 if is_exact else NUM_SIGNS
        )
        accumulator = done.estimate.accumulator
        return OuterState(theta, opt_state, done.inner, accumulator, state.count + 1, done.buffer), metrics

    return outer_step


def _make_evolution(config: MetaConfig, mesh: Mesh) -> _Measure:
    """Makes the estimate by evolution strategies, with or without a share of reverse mode."""
    split, whole = PartitionSpec(PAIRS), PartitionSpec()
    unroll_sharded = jax.shard_map(
        partial(unroll_groups, config=config),
        mesh=mesh,
        in_specs=(split, split, split, split, whole, split),
        out_specs=(split, PartitionSpec(None, PAIRS)),
        check_vma=False,
    )
    differentiate_sharded = jax.shard_map(
        partial(reverse.compute_gradients, config=config),
        mesh=mesh,
        in_specs=(whole, split, split, split, whole, split),
        out_specs=split,
        check_vma=False,
    )

    def measure(state: OuterState, data: TaskData, noise_key: Array, pair_keys: Array) -> _Measured:
        buffer, restored, restarts = state.buffer, None, ()
        if buffer is not None:
            buffer = resume.save_ending(buffer, state.inner, state.accumulator, state.count, config)
            restored, restarts = resume.draw(pair_keys, buffer, config)
        perturbation = _perturb(noise_key, state, restored, config)
        pairs = (state.inner, split_pairs(pair_keys, config), set_index(config), data, restarts)
        thetas = split_pairs(pes.antithetic(state.theta, perturbation), config)
        inner, losses = unroll_sharded(thetas, *pairs)
        losses = join_losses(losses)
        found = estimators.estimate(losses, perturbation, state.accumulator, config, restored)
        reverse_share: ArrayLike = 0.0
        if config.reverse_steps:
            gradients = reverse.join_gradients(differentiate_sharded(state.theta, *pairs))
            gradient, reverse_share = reverse.combine(found.pair_gradients, gradients)
            found = found._replace(gradient=gradient)
        if buffer is not None:
            buffer = resume.save_rising(buffer, state.inner, state.accumulator, losses, config)
        inner = tuple(estimators.next_start(runs, config) for runs in inner)
        return _Measured(inner, losses, found, buffer, restored, reverse_share)

    return measure


def _make_differentiation(config: MetaConfig, mesh: Mesh) -> _Measure:
    """Makes the meta-gradient of whole runs in reverse mode."""
    split, whole = PartitionSpec(PAIRS), PartitionSpec()
    differentiate_sharded = jax.shard_map(
        partial(reverse.differentiate_runs, config=config),
        mesh=mesh,
        in_specs=(whole, split, split, whole),
        out_specs=(PartitionSpec(None, PAIRS), split),
        check_vma=False,
    )

    def measure(state: OuterState, data: TaskData, noise_key: Array, pair_keys: Array) -> _Measured:
        del noise_key
        losses, gradients = differentiate_sharded(
            state.theta, split_pairs(pair_keys, config), set_index(config), data
        )
        joined = join_losses(losses)
        normalized = reverse.join_gradients([reverse.normalize(each) for each in gradients])
        found = estimators.average(normalized, joined, state.accumulator)
        return _Measured(state.inner, joined, found, state.buffer)

    return measure


def _perturb(
    noise_key: Array, state: OuterState, restored: estimators.Restored | None, config: MetaConfig
) -> Theta:
    """Draws each pair's perturbation, or keeps that of its run, depending on the estimator."""
    fresh = pes.sample_perturbations(
        noise_key, state.theta, config.sigma, config.num_pairs, frozen=config.frozen_names
    )
    starting = jnp.concatenate([runs.step >= runs.length for runs in state.inner]) | (state.count == 0)
    return estimators.perturb(
        estimators.mask_unread(fresh, config), state.accumulator, starting, config, restored
    )


def _compute_metrics(
    done: _Measured, skipped: Array, *, task_sizes: Sequence[int], num_signs: int
) -> OuterMetrics:
    losses, found = done.losses, done.estimate
    loss_per_task, meta_loss = _mean_losses(losses, task_sizes)
    diverged = jnp.where(losses.is_running, losses.diverged, 0)
    return OuterMetrics(
        loss_per_task=loss_per_task,
        meta_loss=meta_loss,
        grad_norm=optax.tree.norm(found.gradient),
        signal_to_noise=found.signal_to_noise,
        diverged=jnp.sum(diverged) / (float(num_signs) * jnp.sum(losses.is_running)),
        resets=jnp.sum(losses.is_done),
        ended_runs=num_signs * jnp.sum(losses.is_last),
        diverged_runs=jnp.sum(jnp.where(losses.is_last, diverged, 0)),
        skipped=skipped,
        resumed=_count_resumed(losses, done.restored),
        reverse_share=jnp.asarray(done.reverse_share),
    )


def _count_resumed(losses: Losses, restored: estimators.Restored | None) -> Array:
    """Counts the pairs whose run ended and continued from a saved state."""
    if restored is None:
        return jnp.zeros((), jnp.int32)
    return jnp.sum(jnp.any(losses.is_done, axis=0) & restored.resuming)


def _mean_losses(losses: Losses, task_sizes: Sequence[int]) -> tuple[Array, Array]:
    """Averages losses of both signs by weight, per task and over all pairs; NaN if the weights are zero."""
    total = jnp.sum(losses.weight * (losses.positive + losses.negative) / 2.0, axis=0)
    weight = jnp.sum(losses.weight, axis=0)
    ends = list(accumulate(task_sizes))[:-1]
    per_task = [
        jnp.sum(a) / jnp.sum(b) for a, b in zip(*(jnp.split(x, ends) for x in (total, weight)), strict=True)
    ]
    return jnp.stack(per_task), jnp.sum(total) / jnp.sum(weight)


def _update_theta(
    optimizer: optax.GradientTransformation, state: OuterState, gradient: Theta, frozen: Collection[str]
) -> tuple[Theta, Any, Array]:
    """Applies the meta-gradient unless it or its update is not finite; returns whether it was skipped."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.theta)
    finite = jnp.isfinite(optax.tree.norm(gradient)) & jnp.isfinite(optax.tree.norm(updates))
    theta = cast(Theta, optax.apply_updates(state.theta, updates))
    # Frozen arrays keep their values even if the optimizer moves them without a gradient (weight decay).
    theta = {name: state.theta[name] if name in frozen else new for name, new in theta.items()}

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    new_theta, new_opt_state = jax.tree.map(keep, (theta, opt_state), (state.theta, state.opt_state))
    return new_theta, new_opt_state, (~finite).astype(jnp.int32)


FINAL_RATE = 0.1  # the cosine's final value as a share of the outer learning rate
CUSTOM = "custom"  # recipe name for an optimizer that was passed in Python

Factory = Callable[[optax.ScalarOrSchedule, float], optax.GradientTransformation]

OUTER_OPTIMIZERS: Mapping[str, Factory] = MappingProxyType(
    {
        "adamw": lambda rate, decay: optax.adamw(rate, weight_decay=decay),
        "lion": lambda rate, decay: optax.lion(rate, weight_decay=decay),
        "adam": lambda rate, _: optax.adam(rate),
        "nadam": lambda rate, _: optax.nadam(rate),
        "radam": lambda rate, _: optax.radam(rate),
        "amsgrad": lambda rate, _: optax.amsgrad(rate),
        "adabelief": lambda rate, _: optax.adabelief(rate),
        "yogi": lambda rate, _: optax.yogi(rate),
        "adagrad": lambda rate, _: optax.adagrad(rate),
        "rmsprop": lambda rate, _: optax.rmsprop(rate),
        "sgd": lambda rate, _: optax.sgd(rate),
    }
)


def make_outer_optimizer(
    config: MetaConfig, given: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """Makes the outer optimizer of a recipe: clipping, then Optax's optimizer with the recipe's schedule.

    Args:
        config: The recipe.
        given: Any Optax chain with its own rate, schedule and clipping; the recipe's are not applied.

    Raises:
        ValueError: A chain is given and the recipe's `outer_optimizer` is not "custom", or vice versa.
    """
    if (given is not None) != (config.outer_optimizer == CUSTOM):
        raise ValueError(
            f"outer_optimizer={config.outer_optimizer!r} and {'no' if given is None else 'a'} chain given; "
            f"a recipe with {CUSTOM!r} needs meta_train(config, options, outer_optimizer=chain) in Python, "
            "any other none."
        )
    if given is not None:
        return given
    peak = config.outer_learning_rate
    schedule: optax.ScalarOrSchedule = peak
    if config.outer_decay_steps:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, peak, config.outer_warmup, config.outer_decay_steps, FINAL_RATE * peak
        )
    elif config.outer_warmup:
        schedule = optax.linear_schedule(0.0, peak, config.outer_warmup)
    optimizer = OUTER_OPTIMIZERS[config.outer_optimizer](schedule, config.outer_weight_decay)
    return (
        optax.chain(optax.clip_by_global_norm(config.outer_clip), optimizer)
        if config.outer_clip
        else optimizer
    )
