"""Statistics of the gradients that occur in meta-training's inner runs."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.meta import estimators, pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner.families import (
    Group,
    init_groups,
    load_datasets,
    make_groups,
    set_index,
    split_pairs,
    stack_data,
)
from celo2.meta.inner.unroll import InnerState, make_family, unroll
from celo2.meta.pes import Theta
from celo2.tasks.base import Batch, Params
from celo2.tasks.families.base import TaskData
from celo2.weights.checkpoint import Weights

TRUNCATIONS = 100  # × 64 runs: more than 5,000 gradients of each array


def measure_gradients(weights: Weights, *, truncations: int = TRUNCATIONS) -> dict[str, np.ndarray]:
    """Applies `sample_gradient_rms` to finished weights, with the recipe in their file.

    Raises:
        ValueError: The file contains no recipe.
    """
    recipe = weights.provenance.get("recipe")
    if recipe is None:
        raise ValueError("these weights do not say by which recipe they were made; celo2 meta-train's do.")
    config = MetaConfig.from_json(recipe)
    theta = {name: jnp.asarray(array) for name, array in weights.arrays.items()}
    data = stack_data(load_datasets(config), config)
    return sample_gradient_rms(theta, config, data, truncations=truncations)


def sample_gradient_rms(
    theta: Theta, config: MetaConfig, data: TaskData, *, truncations: int
) -> dict[str, np.ndarray]:
    """Samples the root mean squares of gradients in the inner runs of a recipe, at fixed weights.

    The runs are those of meta-training: its tasks, its learning rates, both signs of a perturbation drawn for
    each truncation (even if the recipe trains whole runs, or perturbs nothing), and a new task when a run
    ends (even if the recipe lets some continue). At the end of a truncation each unfinished run yields one
    gradient. The first runs begin midway with an untrained network, so the first `max_unroll` steps are not
    counted.

    Args:
        theta: The rule's weights.
        config: The recipe; its seed determines every random number.
        data: The data that its families draw from.
        truncations: The number of counted truncations, positive.

    Returns:
        For each family `(samples, arrays)` float32, over the arrays that the rule updates: all arrays in
        Celo2-base, the matrices in Celo2.
    """
    start_key, loop_key = jax.random.split(jax.random.key(config.seed))
    states = init_groups(jax.random.split(start_key, config.num_pairs), theta, config)
    advance = jax.jit(partial(_advance, theta=theta, config=config))
    first = -(-config.max_unroll // config.truncation_length)
    found: dict[str, list[np.ndarray]] = {group.family: [] for group in make_groups(config)}
    for count in range(first + truncations):
        states, measured = advance(states, jax.random.fold_in(loop_key, count), data)
        if count >= first:
            for samples, state, rms in zip(found.values(), states, measured, strict=True):
                goes_on = np.asarray(state.step < state.length)
                samples.append(np.asarray(rms)[goes_on].reshape(-1, rms.shape[-1]))
    return {name: np.concatenate(samples) for name, samples in found.items()}


def _advance(
    states: tuple[InnerState, ...], key: Array, data: TaskData, *, theta: Theta, config: MetaConfig
) -> tuple[tuple[InnerState, ...], tuple[Array, ...]]:
    """Runs a truncation of every pair; returns the states and each group's gradients `(pairs, 2, arrays)`."""
    noise_key, pairs_key, batch_key = jax.random.split(key, 3)
    noise = pes.sample_perturbations(
        noise_key, theta, config.sigma, config.num_pairs, frozen=config.frozen_names
    )
    keys = jax.random.split(pairs_key, config.num_pairs)
    batch_keys = jax.random.split(batch_key, config.num_pairs)
    by_pair = split_pairs((pes.antithetic(theta, noise), keys, batch_keys), config)
    after, measured = [], []
    for group, state, index, given in zip(
        make_groups(config), states, set_index(config), by_pair, strict=True
    ):
        thetas, pair_keys, measure_keys = given
        shared = data.of(group.source)
        state, _ = unroll(thetas, state, pair_keys, index, shared, config, family=group.family)
        state = estimators.next_start(state, config)
        after.append(state)
        measured.append(_measure_group(group, state, measure_keys, index, data, config))
    return tuple(after), tuple(measured)


def _measure_group(
    group: Group, state: InnerState, keys: Array, index: Array, data: TaskData, config: MetaConfig
) -> Array:
    """Measures the gradients of one group's runs at their current states, `(pairs, 2, arrays)`."""
    family = make_family(config, group.family)

    def measure(params: Params, scales: Params, batch: Batch) -> Array:
        grads = jax.grad(family.loss)(params, scales, batch)
        updated = [g for g in jax.tree.leaves(grads) if config.variant == "celo2-base" or g.ndim >= 2]
        return jnp.stack([jnp.sqrt(jnp.mean(jnp.square(grad))) for grad in updated])

    both_signs = jax.vmap(measure, in_axes=(0, None, None))
    shared = data.of(group.source)
    batches = family.make_batches(family.sample_draws(keys, shared, index), shared, state.problem)
    return jax.vmap(both_signs)(state.params, state.scales, batches)
