"""What a factor on the loss does to the shipped weights, with and without `normalize_gradients`.

    python benchmarks/gradient_scale.py --tasks fashion-mlp,tiny-lm,fashion-conv
    python benchmarks/gradient_scale.py --meta-training

Printed: final training loss of each task (the unscaled loss, best of three learning rates, seeds 0 and 1)
by the factor on the loss; "range" is the root mean square of the matrices' unscaled gradients while AdamW
trains at 3e-3: least and largest over matrices and steps. With `--meta-training` instead: quantiles of
the same root mean square over the tasks that the shipped weights were meta-trained on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from probe import STEPS

from celo2 import load_checkpoint
from celo2.baselines import LEARNED
from celo2.evaluate.runner import run_grid
from celo2.jax.gradient_scale import normalize_gradients
from celo2.meta.config import MetaConfig
from celo2.meta.inner import make_inner_optimizer
from celo2.meta.truncation import make_family
from celo2.tasks.base import Task
from celo2.tasks.datasets import load_image_sets
from celo2.tasks.family import stack_datasets
from celo2.tasks.registry import make_task

FACTORS = (1e-4, 1e-2, 1.0, 1e2, 1e4)
RATES = (1e-3, 2e-3, 5e-3)
TRAINED_RUNS, TRAINED_STEPS = 64, 500  # inner runs of the meta-training recipe, at its peak rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="fashion-mlp,tiny-lm,fashion-conv", help="names of celo2 compare")
    parser.add_argument("--targets", default="1e-2", help="targets of normalize_gradients to try")
    parser.add_argument("--meta-training", action="store_true", help="the range met in meta-training")
    options = parser.parse_args()
    if options.meta_training:
        for variant in LEARNED:
            _print_trained_range(variant)
        return
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    targets = [None, *(float(target) for target in options.targets.split(","))]
    print(f"{'task':14}{'optimizer':12}{'target':>10}", *(f"{factor:>9.0e}" for factor in FACTORS))
    for name in options.tasks.split(","):
        task = make_task(name)
        low, high = _gradient_range(task, STEPS[name])
        print(f"{name:14}range of the gradients' rms: {low:.1e} to {high:.1e}")
        for variant, make in LEARNED.items():
            for target in targets:
                losses = [_final_loss(task, _scaled(make, factor, target), STEPS[name]) for factor in FACTORS]
                shown = "none" if target is None else f"{target:g}"
                print(f"{name:14}{variant:12}{shown:>10}", *(f"{x:9.4f}" for x in losses), flush=True)


def _scaled(
    make: Callable[..., optax.GradientTransformation], factor: float, target: float | None
) -> Callable[[optax.Schedule], optax.GradientTransformation]:
    """The optimizer of a loss that is multiplied by `factor`."""
    first = [optax.scale(factor)] + ([] if target is None else [normalize_gradients(target)])
    return lambda rate: optax.chain(*first, make(rate))


def _final_loss(task: Task, make_optimizer: Callable, steps: int) -> float:
    grid = run_grid(task, make_optimizer, RATES, seeds=(0, 1), steps=steps)
    return float(grid.scores[grid.best]) if grid.best is not None else float("nan")


def _gradient_range(task: Task, steps: int) -> tuple[float, float]:
    """Least and largest root mean square of a matrix's gradient while AdamW trains."""
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))
    train = jax.device_put(dict(task.dataset.train))

    @jax.jit
    def step(carry: tuple, key: jax.Array) -> tuple:
        params, state = carry
        grads = jax.grad(task.loss)(params, task.sample_batch(key, train))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), _matrix_rms(grads)

    params = task.init(jax.random.key(0))
    _, rms = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), steps))
    return float(np.min(rms)), float(np.max(rms))


def _print_trained_range(variant: str) -> None:
    """Quantiles of the matrices' gradients over `TRAINED_RUNS` inner runs of the shipped weights' recipe."""
    weights = load_checkpoint(variant)
    config = MetaConfig.from_json(weights.provenance["recipe"])
    theta = {name: jnp.asarray(array) for name, array in weights.arrays.items()}
    family, optimizer = make_family(config), make_inner_optimizer(theta, config)
    data = stack_datasets(list(load_image_sets(config.datasets).values()))

    def run(key: jax.Array, set_index: jax.Array) -> jax.Array:
        task_key, batch_key = jax.random.split(key)
        params, scales = family.init(task_key)

        def step(carry: tuple, key: jax.Array) -> tuple:
            params, state = carry
            grads = jax.grad(family.loss)(params, scales, family.sample_batch(key, data, set_index))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), _matrix_rms(grads)

        keys = jax.random.split(batch_key, TRAINED_STEPS)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    keys = jax.random.split(jax.random.key(0), TRAINED_RUNS)
    rms = jax.jit(jax.vmap(run))(keys, jnp.arange(TRAINED_RUNS) % len(config.datasets))
    shares = (0.0, 0.001, 0.01, 0.5, 0.99, 0.999, 1.0)
    found = np.quantile(rms, shares)
    print(
        f"{variant:12}",
        *(f"{100 * share:g} %: {value:.1e} " for share, value in zip(shares, found, strict=True)),
    )


def _matrix_rms(grads: Any) -> jax.Array:
    return jnp.stack([jnp.sqrt(jnp.mean(g * g)) for g in jax.tree.leaves(grads) if g.ndim >= 2])


if __name__ == "__main__":
    main()
