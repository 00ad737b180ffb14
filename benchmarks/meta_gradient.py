"""Measures exact meta-gradients of whole training runs, and what a step along their mean gains.

    python benchmarks/meta_gradient.py recipes/compared/celo2-in-random-network.safetensors
    python benchmarks/meta_gradient.py random --families mlp --runs 32

For each family of tasks, the mean logarithm of the losses in the last fifth of a run is differentiated with
respect to all weights, once per run (`celo2.meta.reverse`; tasks, initial parameters, batches and learning
rates differ between runs, the rates by up to a factor of 1.5 from about the family's best). The gradients are
clipped to twice their median norm. The table has

    runs         the number of runs whose gradient is finite, of all
    one run      the median norm of a run's gradient
    mean         the norm of the mean gradient ḡ, without the expected share of noise: s = √(|ḡ|² - Σ var/n)
                 ("not resolved" where the difference is negative)
    ratio        s² over the variance of one run's gradient, the signal-to-noise ratio of a single run

and, for moves against the mean gradient by 0.03, 0.1 and 0.3 in the space of the weights, the change of the
loss on new runs: the mean log ratio to the unmoved weights on the same runs, with its 95 % interval, and the
linear prediction, distance × s² / |ḡ|.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from celo2.config import RuleConfig
from celo2.evaluate.environment import describe_environment
from celo2.meta import reverse
from celo2.meta.config import MetaConfig
from celo2.meta.inner.families import init_groups, load_datasets, set_index, stack_data, unroll_groups
from celo2.meta.inner.theta import BUILT_IN, init_theta
from celo2.meta.pes import Theta
from celo2.meta.probe import Row
from celo2.tasks.families.base import TaskData
from celo2.weights.checkpoint import load_checkpoint

BEST_RATES = {"mlp": 0.014, "conv": 0.014, "autoencoder": 0.009, "transformer": 0.005}
DISTANCES = (0.03, 0.1, 0.3)
AT_ONCE = 8  # runs in one call
CLIP = 2.0  # times the median norm


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", help="weight file, name of shipped weights, or one of the starts")
    parser.add_argument(
        "--families", nargs="*", choices=list(BEST_RATES), default=["mlp", "conv", "transformer"]
    )
    parser.add_argument("--runs", type=int, default=64, help=f"of each family, a multiple of {AT_ONCE}")
    parser.add_argument("--steps", type=int, default=300, help="length of a run")
    options = parser.parse_args()
    if options.runs < AT_ONCE or options.runs % AT_ONCE:
        parser.error(f"--runs must be a multiple of {AT_ONCE}, got {options.runs}.")
    facts = describe_environment()
    print(", ".join(f"{key} {facts[key]}" for key in ("commit", "jax", "processor", "cores")))
    moves = "".join(f" {distance:g} (linear) |" for distance in DISTANCES)
    print(f"| family | runs | one run | mean | ratio |{moves}")
    print("|---|---:|---:|---:|---:|" + "---:|" * len(DISTANCES))
    for family in options.families:
        config = make_recipe(options.weights, family, options.steps)
        print(f"| {family} | {' | '.join(measure(config, options.runs // AT_ONCE))} |", flush=True)


def make_recipe(weights: str, family: str, steps: int) -> MetaConfig:
    """Returns the recipe of a family's runs, which starts from the weights."""
    rule = RuleConfig() if weights in BUILT_IN else load_checkpoint(weights).config
    changed = {
        field.name: getattr(rule, field.name)
        for field in dataclasses.fields(rule)
        if field.name != "orthogonalize" and getattr(rule, field.name) != field.default
    }
    return MetaConfig(
        variant="celo2" if weights in BUILT_IN or rule.orthogonalize else "celo2-base",
        rule_options=tuple(f"{name}={json.dumps(value)}" for name, value in changed.items()),
        start=weights,
        estimator="full-reverse",
        meta_loss="end",
        loss_scale="log",
        inner_schedule="cosine",
        inner_learning_rate=BEST_RATES[family],
        rate_spread=1.5,
        rate_units="network",
        level="none",
        families=(family,),
        datasets=("fashion-mnist", "mnist"),
        tasks_per_set=AT_ONCE // 2,
        min_unroll=steps,
        max_unroll=steps,
    )


def measure(config: MetaConfig, calls: int) -> Iterator[str]:
    """Yields the cells of one family's row."""
    theta = init_theta(jax.random.key(config.seed), config)
    data = stack_data(load_datasets(config), config)
    gradients = differentiate(config, theta, data, calls)
    norms = np.linalg.norm(gradients, axis=1)
    yield f"{len(gradients)} of {calls * AT_ONCE}"
    yield f"{np.median(norms):.3f}"
    gradients *= np.minimum(1.0, CLIP * np.median(norms) / norms)[:, None]
    mean, variance = gradients.mean(axis=0), gradients.var(axis=0, ddof=1).sum()
    signal = max(0.0, float(mean @ mean - variance / len(gradients)))
    yield f"{np.sqrt(signal):.3f}" if signal else "not resolved"
    yield f"{signal / variance:.3f}" if signal else ""
    measure_loss = make_loss(config, data, calls)
    before = measure_loss(theta)
    for distance in DISTANCES:
        moved = move(theta, -distance * mean / np.linalg.norm(mean))
        row = Row.of(f"{distance:g}", measure_loss(moved) - before)
        linear = -100 * distance * signal / np.linalg.norm(mean)
        predicted = f" ({linear:.2f})" if signal else ""
        yield f"{100 * row.mean:+.2f} ± {100 * (row.high - row.mean):.2f} %{predicted}"


def differentiate(config: MetaConfig, theta: Theta, data: TaskData, calls: int) -> np.ndarray:
    """Returns the finite gradients of the runs, `(runs, weights)` float64."""
    compute = jax.jit(partial(reverse.differentiate_runs, config=config))
    found = []
    for call in range(calls):
        _, (gradients,) = compute(theta, (_keys(config, call),), set_index(config), data)
        found.append(jax.vmap(lambda each: ravel_pytree(each)[0])(gradients))
    together = np.concatenate(found, dtype=np.float64)
    return together[np.isfinite(together).all(axis=1)]


def make_loss(config: MetaConfig, data: TaskData, calls: int) -> Callable[[Theta], np.ndarray]:
    """Makes a function from weights to the log losses of runs on which nothing was differentiated."""
    unroll = jax.jit(partial(unroll_groups, config=config))

    def run(theta: Theta, keys: Any) -> Any:
        thetas = {name: jnp.broadcast_to(x, (AT_ONCE, 1, *x.shape)) for name, x in theta.items()}
        _, (losses,) = unroll((thetas,), init_groups(keys, theta, config), (keys,), set_index(config), data)
        return jnp.sum(losses.weight * losses.positive, axis=0)

    def measure_loss(theta: Theta) -> np.ndarray:
        runs = [run(theta, _keys(config, call)) for call in range(calls, 2 * calls)]
        return np.concatenate([np.asarray(losses, np.float64) for losses in runs])

    return measure_loss


def _keys(config: MetaConfig, call: int) -> Any:
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), call), AT_ONCE)


def move(theta: Theta, change: np.ndarray) -> Theta:
    """Adds a change, like a row of `differentiate`, to the weights."""
    flat, unravel = ravel_pytree(theta)
    return unravel(flat + jnp.asarray(change, flat.dtype))


if __name__ == "__main__":
    main()
