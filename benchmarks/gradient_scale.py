"""Measures how scaling the loss affects the shipped weights, with and without `normalize_gradients`.

    python benchmarks/gradient_scale.py --rates 2e-3 5e-3 --seeds 1
    python benchmarks/gradient_scale.py --meta-training

Prints the final training loss of each task (the unscaled loss, averaged over the last 5 % of the steps and
over the seeds, at the best of the learning rates) for each factor on the loss. "range" is the minimum and
maximum, over matrices and steps, of the root mean square of a matrix's unscaled gradient while AdamW trains
at 3e-3. With `--meta-training`, prints quantiles of the root mean square instead, over the inner runs that
the shipped weights were meta-trained on and the arrays that the rule updates there.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from state_dtype import STEPS

from celo2 import load_checkpoint
from celo2.baselines import LEARNED
from celo2.evaluate.environment import describe_environment
from celo2.jax.gradient_scale import normalize_gradients
from celo2.meta.gradient_stats import measure_gradients
from celo2.tasks.base import Task
from celo2.tasks.registry import make_task
from celo2.training.optimizer_step import make_step
from celo2.training.protocol import cosine_schedule, seed_keys, window_length

FACTORS = (1e-4, 1e-2, 1.0, 1e2, 1e4)
SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def main() -> None:
    options = _parse()
    if options.meta_training:
        for variant in LEARNED:
            _print_trained_range(variant)
        return
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    started = time.monotonic()
    print(", ".join(f"{name} {text}" for name, text in describe_environment().items()))
    print(f"{'task':14}{'optimizer':12}{'target':>10}", *(f"{factor:>9.0e}" for factor in FACTORS))
    for name in options.tasks.split(","):
        task, steps = make_task(name), max(2, round(options.share * STEPS[name]))
        low, high = _gradient_range(task, steps)
        print(f"{name:14}{steps} steps, range of the gradients' rms: {low:.1e} to {high:.1e}", flush=True)
        for variant, make in LEARNED.items():
            targets = (0.0, *options.targets)
            losses = _final_losses(
                task, make, targets, steps, rates=options.rates, seeds=range(options.seeds)
            )
            for target, row in zip(targets, losses, strict=True):
                shown = f"{target:g}" if target else "none"
                print(f"{name:14}{variant:12}{shown:>10}", *(f"{x:9.4f}" for x in row), flush=True)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="fashion-mlp,tiny-lm,fashion-conv", help="names of celo2 compare")
    parser.add_argument("--targets", type=float, nargs="+", default=[1e-2], help="of normalize_gradients")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 5e-3], help="peak rates tried")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each rate: seeds 0, 1, …")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of each task")
    parser.add_argument("--meta-training", action="store_true", help="the range met in meta-training")
    return parser.parse_args()


def _scale_loss(factor: jax.Array, target: jax.Array) -> optax.GradientTransformation:
    """Scales gradients by `factor`, then applies `normalize_gradients(target)` unless the target is 0."""
    normalize = normalize_gradients(1.0)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads = jax.tree.map(lambda g: factor * g, grads)
        scaled, state = normalize.update(grads, state, params)
        return jax.tree.map(lambda g, s: jnp.where(target > 0, target * s, g), grads, scaled), state

    return optax.GradientTransformation(normalize.init, update)


def _final_losses(
    task: Task,
    make: Callable[..., optax.GradientTransformation],
    targets: Sequence[float],
    steps: int,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
) -> np.ndarray:
    """Returns losses `(targets, factors)`, with one compilation for all; NaN if every rate diverged."""
    train = jax.device_put(dict(task.dataset.train))

    def run(target: jax.Array, factor: jax.Array, rate: jax.Array, seed: jax.Array) -> jax.Array:
        init_key, loop_key = seed_keys(seed)
        params = task.init(init_key)
        optimizer = optax.chain(_scale_loss(factor, target), make(cosine_schedule(rate, steps)))
        step = make_step(task, optimizer)

        def body(carry: Any, count: jax.Array) -> tuple[Any, jax.Array]:
            return step(carry, task.sample_batch(jax.random.fold_in(loop_key, count), train))

        return jax.lax.scan(body, (params, optimizer.init(params)), jnp.arange(steps))[1]

    runs = np.asarray(list(itertools.product(targets, FACTORS, rates, seeds)))
    shape = (len(targets), len(FACTORS), len(rates), len(seeds))
    losses = _on_all_devices(run, *runs[:, :3].T.astype(np.float32), runs[:, 3].astype(np.uint32))
    final = losses[:, -window_length(steps) :].mean(axis=1).reshape(shape).mean(axis=-1)
    best = np.where(np.isfinite(final), final, np.inf).min(axis=-1)
    return np.where(np.isfinite(best), best, np.nan)


def _on_all_devices(run: Callable[..., jax.Array], *columns: np.ndarray) -> np.ndarray:
    """Runs `run` for each row of the columns, vmapped on each device; drops padding rows."""
    devices = jax.local_devices()
    missing = -len(columns[0]) % len(devices)
    padded = [np.concatenate([column, column[-1:].repeat(missing)]) for column in columns]
    each = jax.shard_map(
        jax.vmap(run),
        mesh=Mesh(np.asarray(devices), ("runs",)),
        in_specs=PartitionSpec("runs"),
        out_specs=PartitionSpec("runs"),
        check_vma=False,
    )
    return np.asarray(jax.jit(each)(*padded))[: len(columns[0])]


def _gradient_range(task: Task, steps: int) -> tuple[float, float]:
    """Returns the minimum and maximum root mean square of a matrix's gradient while AdamW trains."""
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
    """Prints quantiles of the gradients in the inner runs of the shipped weights' recipe."""
    for family, found in measure_gradients(load_checkpoint(variant)).items():
        quantiles = zip(SHARES, np.quantile(found, SHARES), strict=True)
        cells = (f"{100 * share:g} %: {value:.1e} " for share, value in quantiles)
        print(f"{variant:12}{family}: {len(found)} × {found.shape[1]} arrays ", *cells, flush=True)


def _matrix_rms(grads: Any) -> jax.Array:
    return jnp.stack([jnp.sqrt(jnp.mean(g * g)) for g in jax.tree.leaves(grads) if g.ndim >= 2])


if __name__ == "__main__":
    main()
