"""Measures weights on the tasks that they are meta-trained on, at several learning rates.

    python benchmarks/inner_rates.py adam runs/celo2-base/weights/celo2-base-004000.safetensors

Each rule ("random" and "adam" are the starts of `celo2 meta-train`) trains the same small networks on the
four image sets, unscaled, for 500 steps with a cosine schedule. Prints the loss over the last tenth and over
the whole run at each learning rate. A rule that gains at small rates but not at the best one has learned to
take larger steps, not better ones.
"""

from __future__ import annotations

import argparse
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from celo2.meta.config import MetaConfig, Variant
from celo2.meta.inner.optimizer import make_inner_optimizer
from celo2.meta.inner.theta import BUILT_IN, init_theta
from celo2.meta.inner.unroll import make_family
from celo2.tasks.families.base import FamilyData, stack_datasets
from celo2.tasks.vision.datasets import load_image_sets
from celo2.weights.checkpoint import load_checkpoint

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
RUNS, STEPS = 32, 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "weights", nargs="+", help='weight files, names of shipped weights, "random" or "adam"'
    )
    parser.add_argument("--variant", choices=get_args(Variant), default="celo2-base", help="of the starts")
    options = parser.parse_args()
    print(f"{'weights':32}", *(f"{f'rate {rate:g}':>17}" for rate in RATES))
    for name in options.weights:
        variant = options.variant if name in BUILT_IN else load_checkpoint(name).config.variant
        config = MetaConfig(variant=variant, start=name, level="none")
        data = stack_datasets(list(load_image_sets(config.datasets).values()))
        losses = _train(config, data)
        cells = (f"{curve[-STEPS // 10 :].mean():.4f} / {curve.mean():.4f}" for curve in losses)
        print(f"{name[-32:]:32}", *(f"{cell:>17}" for cell in cells), flush=True)


def _train(config: MetaConfig, data: FamilyData) -> np.ndarray:
    """Returns losses `(rates, steps)`, averaged over the runs."""
    family = make_family(config)
    theta = {name: np.asarray(array) for name, array in init_theta(jax.random.key(0), config).items()}
    optimizer = make_inner_optimizer(theta, config)

    def run(key: jax.Array, set_index: jax.Array, rate: jax.Array) -> jax.Array:
        task_key, batch_key = jax.random.split(key)
        params, scales = family.init(task_key)

        def step(carry: tuple, given: tuple) -> tuple:
            (params, state), (share, key) = carry, given
            batch = family.sample_batch(key, data, set_index)
            loss, grads = jax.value_and_grad(family.loss)(params, scales, batch)
            updates, state = optimizer.update(grads, state, params)
            factor = share * rate / config.inner_learning_rate
            return (jax.tree.map(lambda p, u: p + factor * u, params, updates), state), loss

        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.arange(STEPS) / STEPS))
        start = (params, optimizer.init(params))
        return jax.lax.scan(step, start, (cosine, jax.random.split(batch_key, STEPS)))[1]

    keys = jax.random.split(jax.random.key(1), RUNS)
    each_run = jax.vmap(run, in_axes=(0, 0, None))
    set_index = jnp.arange(RUNS) % len(config.datasets)
    each_rate = jax.jit(lambda rates: jax.lax.map(lambda rate: each_run(keys, set_index, rate), rates))
    return np.asarray(each_rate(jnp.array(RATES))).mean(axis=1)


if __name__ == "__main__":
    main()
