"""One outer iteration: perturb theta, unroll every pair, estimate, update theta."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from celo2.meta import estimators, pes
from celo2.meta.config import MetaConfig
from celo2.meta.distributed import replicate
from celo2.meta.losses import Losses
from celo2.meta.outer_optimizer import make_outer_optimizer
from celo2.meta.pes import Theta
from celo2.meta.start import init_theta
from celo2.meta.truncation import InnerState, init_pairs, unroll, unroll_full
from celo2.tasks.family import FamilyData

__all__ = ["MAX_STEPS", "OuterMetrics", "OuterState", "init", "make_mesh", "make_outer_steps"]

PAIRS = "pairs"  # name of the mesh axis
MAX_STEPS = 100  # outer iterations of one call of the function that `make_outer_steps` returns


class OuterState(NamedTuple):
    """Everything that a resumed run needs.

    Attributes:
        theta: The rule's weights.
        opt_state: State of the outer optimizer.
        inner: The inner runs.
        accumulator: PES's sum of perturbations of each pair.
        count: Outer iterations so far; with the seed it decides every random number to come.
    """

    theta: Theta
    opt_state: Any
    inner: InnerState
    accumulator: Theta
    count: Array  # type: ignore[assignment]  # tuple.count is not meant


class OuterMetrics(NamedTuple):
    """What one outer iteration reports, scalars except the first.

    Attributes:
        loss_per_set: Mean meta-loss of each image set; NaN if no loss counted.
        meta_loss: Mean meta-loss; NaN if no loss counted.
        grad_norm: Norm of the meta-gradient.
        diverged: Share of inner losses that were not finite.
        resets: Pairs that were reset.
        ended_runs: Inner runs that took their last step, of both signs.
        diverged_runs: Those whose loss at that step was not finite.
        skipped: 1 if the meta-gradient, or the update made of it, was not finite and theta was left alone.
    """

    loss_per_set: Array
    meta_loss: Array
    grad_norm: Array
    diverged: Array
    resets: Array
    ended_runs: Array
    diverged_runs: Array
    skipped: Array


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, the pairs'."""
    return jax.make_mesh((jax.device_count(),), (PAIRS,), axis_types=(AxisType.Auto,))


def init(config: MetaConfig, mesh: Mesh, optimizer: optax.GradientTransformation | None = None) -> OuterState:
    """The state before the first iteration, the pairs sharded over the mesh.

    Args:
        config: The recipe.
        mesh: The devices.
        optimizer: See `make_outer_optimizer`.

    Raises:
        ValueError: The devices cannot share the pairs equally; see also `make_outer_optimizer`.
    """
    optimizer = make_outer_optimizer(config, optimizer)
    num_devices = mesh.shape[PAIRS]
    if config.num_pairs % num_devices:
        raise ValueError(
            f"{config.num_pairs} pairs cannot be shared equally by {num_devices} devices; "
            "choose tasks_per_set so that they can, or use fewer devices."
        )
    theta_key, pairs_key = jax.random.split(jax.random.key(config.seed))
    start = replicate(init_theta(theta_key, config), mesh)

    def make(theta: Theta) -> OuterState:
        accumulator = {
            name: jnp.zeros((config.num_pairs, *array.shape), array.dtype) for name, array in theta.items()
        }
        inner = init_pairs(jax.random.split(pairs_key, config.num_pairs), theta, config)
        opt_state = optimizer.init(theta)
        return OuterState(theta, opt_state, inner, accumulator, jnp.zeros((), jnp.int32))

    return jax.jit(make, out_shardings=_state_shardings(mesh))(start)


def _state_shardings(mesh: Mesh) -> OuterState:
    split = NamedSharding(mesh, PartitionSpec(PAIRS))
    whole = NamedSharding(mesh, PartitionSpec())
    shardings: Any = (whole, whole, split, split, whole)
    return OuterState(*shardings)


def make_outer_steps(
    config: MetaConfig, mesh: Mesh, optimizer: optax.GradientTransformation | None = None
) -> Callable[[OuterState, FamilyData, ArrayLike], tuple[OuterState, OuterMetrics]]:
    """Several outer iterations as one compiled program, without the host between them.

    Args:
        config: The recipe.
        mesh: The devices.
        optimizer: See `make_outer_optimizer`.

    Returns:
        `(state, data, num_steps) → (state, metrics)`; the state given is consumed, `num_steps` is in
        [0, MAX_STEPS] and changes nothing but how far it goes, and each of the metrics has a leading axis
        MAX_STEPS, of which the first `num_steps` are filled.
    """
    outer_step = _make_outer_step(config, mesh, optimizer)

    def outer_steps(
        state: OuterState, data: FamilyData, num_steps: ArrayLike
    ) -> tuple[OuterState, OuterMetrics]:
        def body(index: Array, carry: tuple[OuterState, OuterMetrics]) -> tuple[OuterState, OuterMetrics]:
            state, found = outer_step(carry[0], data)
            return state, jax.tree.map(lambda all_, one: all_.at[index].set(one), carry[1], found)

        like = jax.eval_shape(outer_step, state, data)[1]
        empty = jax.tree.map(lambda one: jnp.zeros((MAX_STEPS, *one.shape), one.dtype), like)
        return jax.lax.fori_loop(0, num_steps, body, (state, empty))

    shardings = (_state_shardings(mesh), NamedSharding(mesh, PartitionSpec()))
    return jax.jit(outer_steps, donate_argnums=0, out_shardings=shardings)


def _make_outer_step(
    config: MetaConfig, mesh: Mesh, optimizer: optax.GradientTransformation | None
) -> Callable[[OuterState, FamilyData], tuple[OuterState, OuterMetrics]]:
    optimizer = make_outer_optimizer(config, optimizer)
    frozen = config.frozen_names
    set_index = jnp.repeat(jnp.arange(len(config.datasets)), config.tasks_per_set)
    split, whole = PartitionSpec(PAIRS), PartitionSpec()
    unroll_sharded = jax.shard_map(
        partial(unroll_full if config.estimator == "full-es" else unroll, config=config),
        mesh=mesh,
        in_specs=(split, split, split, split, whole),
        out_specs=(split, PartitionSpec(None, PAIRS)),
        check_vma=False,
    )

    def outer_step(state: OuterState, data: FamilyData) -> tuple[OuterState, OuterMetrics]:
        run_key = jax.random.fold_in(jax.random.key(config.seed), state.count + 1)
        noise_key, pairs_key = jax.random.split(run_key)
        perturbation = pes.sample_perturbations(
            noise_key, state.theta, config.sigma, config.num_pairs, frozen=frozen
        )
        inner, losses = unroll_sharded(
            pes.antithetic(state.theta, perturbation),
            state.inner,
            jax.random.split(pairs_key, config.num_pairs),
            set_index,
            data,
        )
        found = estimators.estimate(losses, perturbation, state.accumulator, config)
        theta, opt_state, skipped = _update_theta(optimizer, state, found.gradient, frozen)
        metrics = _compute_metrics(losses, found.gradient, skipped, num_sets=len(config.datasets))
        inner = estimators.next_start(inner, config)
        return OuterState(theta, opt_state, inner, found.accumulator, state.count + 1), metrics

    return outer_step


def _compute_metrics(losses: Losses, gradient: Theta, skipped: Array, *, num_sets: int) -> OuterMetrics:
    loss_per_set, meta_loss = _mean_losses(losses, num_sets)
    diverged = jnp.where(losses.is_running, losses.diverged, 0)
    return OuterMetrics(
        loss_per_set=loss_per_set,
        meta_loss=meta_loss,
        grad_norm=optax.tree.norm(gradient),
        diverged=jnp.sum(diverged) / (2.0 * jnp.sum(losses.is_running)),
        resets=jnp.sum(losses.is_done),
        ended_runs=2 * jnp.sum(losses.is_last),
        diverged_runs=jnp.sum(jnp.where(losses.is_last, diverged, 0)),
        skipped=skipped,
    )


def _mean_losses(losses: Losses, num_sets: int) -> tuple[Array, Array]:
    """Weighted means over each image set and over all, of both signs; NaN where nothing has weight."""
    total = jnp.sum(losses.weight * (losses.positive + losses.negative) / 2.0, axis=0)
    weight = jnp.sum(losses.weight, axis=0)
    per_set, weight_per_set = (jnp.sum(x.reshape(num_sets, -1), axis=1) for x in (total, weight))
    return per_set / weight_per_set, jnp.sum(total) / jnp.sum(weight)


def _update_theta(
    optimizer: optax.GradientTransformation, state: OuterState, gradient: Theta, frozen: Collection[str]
) -> tuple[Theta, Any, Array]:
    """Applies the meta-gradient unless it or its update is not finite; says whether it was skipped."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.theta)
    finite = jnp.isfinite(optax.tree.norm(gradient)) & jnp.isfinite(optax.tree.norm(updates))
    theta = cast(Theta, optax.apply_updates(state.theta, updates))
    # Frozen arrays stay whatever the optimizer does without a gradient, decay say.
    theta = {name: state.theta[name] if name in frozen else new for name, new in theta.items()}

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    new_theta, new_opt_state = jax.tree.map(keep, (theta, opt_state), (state.theta, state.opt_state))
    return new_theta, new_opt_state, (~finite).astype(jnp.int32)
