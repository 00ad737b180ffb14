"""What a factor on the loss does to the shipped weights, with and without `normalize_gradients`.

    python benchmarks/gradient_scale.py --tasks fashion-mlp,tiny-lm,fashion-conv

Printed: final training loss of each task (the unscaled loss, best of three learning rates, seeds 0 and 1)
by the factor on the loss; "range" is the root mean square of the matrices' unscaled gradients while AdamW
trains at 3e-3: least and largest over matrices and steps.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from probe import STEPS

from celo2.baselines import LEARNED
from celo2.evaluate.runner import run_grid
from celo2.jax.gradient_scale import normalize_gradients
from celo2.tasks.base import Task
from celo2.tasks.registry import make_task

FACTORS = (1e-4, 1e-2, 1.0, 1e2, 1e4)
RATES = (1e-3, 2e-3, 5e-3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="fashion-mlp,tiny-lm,fashion-conv", help="names of celo2 compare")
    parser.add_argument("--targets", default="1e-2", help="targets of normalize_gradients to try")
    options = parser.parse_args()
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
        rms = [jnp.sqrt(jnp.mean(g * g)) for g in jax.tree.leaves(grads) if g.ndim >= 2]
        return (optax.apply_updates(params, updates), state), jnp.stack(rms)

    params = task.init(jax.random.key(0))
    _, rms = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), steps))
    return float(np.min(rms)), float(np.max(rms))


if __name__ == "__main__":
    main()
