"""The gradients that meta-training meets: how large they are, measured on its own inner runs."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.meta import estimators, pes
from celo2.meta.config import MetaConfig
from celo2.meta.pes import Theta
from celo2.meta.truncation import InnerState, init_pairs, make_family, unroll
from celo2.tasks.base import Params
from celo2.tasks.datasets import load_image_sets
from celo2.tasks.family import FamilyData, stack_datasets
from celo2.weights import Weights

__all__ = ["measure_gradients", "sample_gradient_rms"]

TRUNCATIONS = 100  # × 64 runs: more than 5,000 gradients of each array


def measure_gradients(weights: Weights, *, truncations: int = TRUNCATIONS) -> np.ndarray:
    """`sample_gradient_rms` for finished weights, by the recipe that their file states.

    Raises:
        ValueError: The file states no recipe.
    """
    recipe = weights.provenance.get("recipe")
    if recipe is None:
        raise ValueError("these weights do not say by which recipe they were made; celo2 meta-train's do.")
    config = MetaConfig.from_json(recipe)
    theta = {name: jnp.asarray(array) for name, array in weights.arrays.items()}
    data = stack_datasets(list(load_image_sets(config.datasets).values()), splits=config.splits)
    return sample_gradient_rms(theta, config, data, truncations=truncations)


def sample_gradient_rms(
    theta: Theta, config: MetaConfig, data: FamilyData, *, truncations: int
) -> np.ndarray:
    """Root mean squares of the gradients in the inner runs of a recipe, at fixed weights.

    The runs are those of meta-training: its tasks, its learning rates, both signs of a perturbation drawn
    for each truncation (also where the recipe estimates from whole runs), and a new task where a run
    ends. At the end of a truncation every run that goes on gives one gradient. The first runs begin in
    the middle with an untrained network, so what comes before `max_unroll` steps is not counted.

    Args:
        theta: The rule's weights.
        config: The recipe; its seed decides every random number.
        data: Its image sets.
        truncations: How many are counted, positive.

    Returns:
        `(samples, arrays)` float32: of the arrays that the rule updates, which are all of them in
        Celo2-base and the matrices in Celo2.
    """
    start_key, loop_key = jax.random.split(jax.random.key(config.seed))
    state = init_pairs(jax.random.split(start_key, config.num_pairs), theta, config)
    advance = jax.jit(partial(_advance, theta=theta, config=config))
    first = -(-config.max_unroll // config.truncation_length)
    found = []
    for count in range(first + truncations):
        state, rms = advance(state, jax.random.fold_in(loop_key, count), data)
        if count >= first:
            goes_on = np.asarray(state.step < state.length)
            found.append(np.asarray(rms)[goes_on].reshape(-1, rms.shape[-1]))
    return np.concatenate(found)


def _advance(
    state: InnerState, key: Array, data: FamilyData, *, theta: Theta, config: MetaConfig
) -> tuple[InnerState, Array]:
    """One truncation of every pair; the state after it and its gradients, `(pairs, 2, arrays)`."""
    noise_key, pairs_key, batch_key = jax.random.split(key, 3)
    noise = pes.sample_perturbations(
        noise_key, theta, config.sigma, config.num_pairs, frozen=config.frozen_names
    )
    keys = jax.random.split(pairs_key, config.num_pairs)
    set_index = jnp.repeat(jnp.arange(len(config.datasets)), config.tasks_per_set)
    state, _ = unroll(pes.antithetic(theta, noise), state, keys, set_index, data, config)
    state = estimators.next_start(state, config)
    family = make_family(config)

    def measure(params: Params, scales: Params, key: Array, index: Array) -> Array:
        grads = jax.grad(family.loss)(params, scales, family.sample_batch(key, data, index))
        updated = [g for g in jax.tree.leaves(grads) if config.variant == "celo2-base" or g.ndim >= 2]
        return jnp.stack([jnp.sqrt(jnp.mean(jnp.square(grad))) for grad in updated])

    both_signs = jax.vmap(measure, in_axes=(0, None, None, None))
    batch_keys = jax.random.split(batch_key, config.num_pairs)
    return state, jax.vmap(both_signs)(state.params, state.scales, batch_keys, set_index)
