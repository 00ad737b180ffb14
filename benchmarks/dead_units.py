"""Counts the units of a network that are dead at the end of training, for several optimizers.

    python benchmarks/dead_units.py celo2 recipes/compared/celo2-revival.safetensors

A hidden unit is dead if the gradients of all its incoming weights are zero for each of 20 batches. The task
is one of a declared set, by default the autoencoder of `choosing`, whose narrowest layer has 12 units; each
optimizer trains with the same seeds, starts and batches.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from celo2.baselines import find_optimizer
from celo2.meta.task_sets import END_SHARE, load_task_set
from celo2.tasks.base import Task
from celo2.training.optimizer_step import make_step
from celo2.training.protocol import cosine_schedule, seed_keys

BATCHES = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("optimizers", nargs="+", help="names, or weight files")
    parser.add_argument("--set", default="choosing", help="a set of tasks, or a TOML file")
    parser.add_argument("--task", default="mnist-autoencoder", help="a task of the set, with ReLU units")
    parser.add_argument("--rate", type=float, default=2.8e-3, help="the peak learning rate")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    task_set = load_task_set(options.set)
    (entry,) = task_set.select([options.task]).tasks
    task = entry.make()
    data = jax.tree.map(jnp.asarray, dict(task.dataset.train))
    schedule = cosine_schedule(options.rate, entry.steps)
    for name in options.optimizers:
        optimizer = find_optimizer(name).make(schedule, entry.weight_decay)
        run = jax.jit(partial(train, task, optimizer, entry.steps))
        print(name)
        for seed in task_set.seed_range[: options.seeds]:
            params, losses = run(jnp.asarray(seed, jnp.uint32), data)
            end = float(jnp.mean(losses[-round(END_SHARE * entry.steps) :]))
            print(f"  seed {seed}: loss {end:.4f}; dead: {', '.join(count_dead(task, params, data))}")


def train(task: Task, optimizer: Any, steps: int, seed: jax.Array, data: Any) -> tuple[Any, jax.Array]:
    """Trains a network; returns its parameters and the loss of each step."""
    init_key, batch_key = seed_keys(seed)
    params = task.init(init_key)

    update = make_step(task, optimizer)

    def step(carry: tuple[Any, Any], count: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        return update(carry, task.sample_batch(jax.random.fold_in(batch_key, count), data))

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params, losses


def count_dead(task: Task, params: Any, data: Any) -> list[str]:
    """Returns "NAME k of n" for each matrix: the number of its dead outputs, and of all outputs."""
    batches = [task.sample_batch(jax.random.key(number), data) for number in range(BATCHES)]
    grads = [jax.grad(task.loss)(params, batch) for batch in batches]
    largest = jax.tree.map(lambda *each: np.max(np.abs(np.stack(each)), axis=0), *grads)
    found = []
    for path, array in jax.tree.leaves_with_path(largest):
        if array.ndim == 2:
            dead = int(np.sum(np.all(array == 0, axis=0)))
            found.append(
                f"{jax.tree_util.keystr(path, simple=True, separator='.')} {dead} of {array.shape[1]}"
            )
    return found


if __name__ == "__main__":
    main()
