"""Runs of the predecessors: recorded ones (../shared/conformance/zoo, one also in golden/), the oracle's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from golden import reference
from numpy.typing import NDArray

from celo2 import zoo
from celo2.weights.schema import as_tree, flatten
from helpers.rule_runs import GOLDEN
from oracle.zoo import OPTIMIZERS

Array = NDArray[np.floating]
Leaves = dict[str, Array]


class Bound(NamedTuple):
    """Relative error of the total change over all tensors: after the last step, and the largest of all."""

    final: float
    largest: float


# About twice what the float64 specification shows against these float32 runs, which is their rounding.
RUNS: dict[str, tuple[str, Bound]] = {  # run → (optimizer, bound)
    "celo": ("celo", Bound(3.6e-4, 1.4e-3)),
    "celo_phase1": ("celo_phase1", Bound(3.6e-5, 1.2e-4)),
    "celo_pretrained": ("celo", Bound(1.9e-6, 8.8e-6)),
    "celo_adam": ("celo_adam", Bound(1.2e-4, 1.25e-4)),
    "celo_adam_pretrained": ("celo_adam", Bound(1.8e-6, 1.2e-4)),
    "adafac_mlp": ("adafac_mlp", Bound(1.9e-4, 2.8e-4)),
    "velo_s": ("velo_s", Bound(1.5e-3, 1.1e-2)),
    "velo_s_large": ("velo_s", Bound(7.2e-4, 1.8e-3)),
    "rnn_mlp": ("rnn_mlp", Bound(1.1e-5, 3.2e-5)),
    "nn_adam": ("nn_adam", Bound(1.0e-4, 2.1e-4)),
}


@dataclass(frozen=True)
class Run:
    """One run. `params` has one entry more than `grads` and `losses`; names are in pytree order."""

    theta: dict[str, Any]
    params: list[Leaves]
    grads: list[Leaves]
    losses: list[float]
    num_steps: int  # that the optimizer was told


def load_run(shared: Path, name: str) -> Run:
    """Reads a recorded run and its weights."""
    released = name.removesuffix("_pretrained")
    folder = shared / ("checkpoints" if released != name else "conformance/zoo")
    theta = dict(zoo.load_weights(folder / f"{released}.theta.state").arrays)
    return _parse(reference.read(shared / "conformance" / "zoo" / f"{name}.npz"), theta)


def load_reduced() -> Run:
    """Reads the reduced recorded run that every checkout has."""
    arrays = reference.read(GOLDEN / reference.ZOO_FILE)
    return _parse(arrays, _leaves(arrays, "theta/"))


def _parse(arrays: Leaves, theta: Leaves) -> Run:
    steps = sum(name.startswith("loss/") for name in arrays)
    params = [_leaves(arrays, f"params/{t}/") for t in range(steps + 1)]
    grads = [_leaves(arrays, f"grads/{t}/") for t in range(steps)]
    losses = [float(arrays[f"loss/{t}"]) for t in range(steps)]
    return Run(theta, params, grads, losses, int(arrays["num_steps"]))


def _leaves(arrays: Leaves, prefix: str) -> Leaves:
    return {k.removeprefix(prefix): v for k, v in sorted(arrays.items()) if k.startswith(prefix)}


@functools.cache
def jitted_steps(name: str, **options: Any) -> Callable[..., list[Any]]:
    """`(theta, params, all grads, all losses, T) → params after each step`; each shape compiles once."""

    @jax.jit
    def run(theta: Any, params: Any, grads: Any, losses: Any, num_steps: Any) -> Any:
        tx = zoo.make(name, weights=theta, num_steps=num_steps, **options)

        def body(carry: Any, given: Any) -> Any:
            params, state = carry
            grad, loss = given
            updates, state = tx.update(grad, state, params, value=loss)
            params = jax.tree.map(jnp.add, params, updates)
            return (params, state), params

        return jax.lax.scan(body, (params, tx.init(params)), (grads, losses))[1]

    return run


def replay(run: Run, name: str, *, dtype: Any = np.float32, **options: Any) -> list[Leaves]:
    """The parameters after each step of a run, from its start and its gradients."""

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda array: jnp.asarray(array, dtype), tree)

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *run.grads)
    losses = jnp.asarray(run.losses, dtype)
    steps = jitted_steps(name, **options)
    after = steps(cast(run.theta), cast(run.params[0]), cast(stacked), losses, jnp.asarray(run.num_steps))
    after = jax.tree.map(np.asarray, after)
    return [{name: leaves[t] for name, leaves in after.items()} for t in range(len(run.grads))]


def change_errors(params: Sequence[Leaves], expected: Sequence[Leaves], start: Leaves) -> list[float]:
    """After each step |ours - theirs| over |theirs - start|, Euclidean norms over all tensors."""

    def norm(a: Leaves, b: Leaves) -> float:
        return float(
            np.sqrt(sum(np.sum(np.square(a[n].astype(float) - b[n].astype(float))) for n in expected[0]))
        )

    return [norm(ours, theirs) / norm(theirs, start) for ours, theirs in zip(params, expected, strict=True)]


def random_theta(name: str, rng: np.random.Generator, scale: float, **options: Any) -> dict[str, Array]:
    """Untrained weights with dense noise on top, biases included, so that nothing hides behind a zero."""
    start = zoo.init_theta(name, jax.random.key(0), **options)
    return {
        n: np.asarray(a, np.float64) + scale * rng.standard_normal(a.shape) for n, a in sorted(start.items())
    }


def make_run(
    kind: str,
    theta: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    steps: int,
    num_steps: int,
    rng: np.random.Generator,
    switches: Mapping[str, Any],
) -> Run:
    """A run of the oracle on hostile gradients and losses: zeros, tiny, huge, spikes, negative."""
    names = sorted(shapes)
    oracle = OPTIMIZERS[kind](as_tree(flatten(theta)), [shapes[n] for n in names], num_steps, **switches)
    params: list[Leaves] = [{n: 0.5 * rng.standard_normal(shapes[n]) for n in names}]
    params[0][names[0]] = np.zeros(shapes[names[0]])
    grads, losses = [], []
    for t in range(steps):
        scale = 10.0 ** rng.uniform(-5, 5) if t % 5 == 4 else 1.0
        kept = 0.0 if t % 17 == 3 else 1.0
        grads.append(
            {
                n: kept * scale * rng.standard_normal(shapes[n]) * (rng.uniform(size=shapes[n]) > 0.2)
                for n in names
            }
        )
        loss = 2.0 * 0.99**t + 0.1 * rng.standard_normal()
        losses.append({7: 1e4, 23: -5.0, 50: 0.0}.get(t % 60, loss))
        changes = oracle.update([grads[-1][n] for n in names], [params[-1][n] for n in names], losses[-1])
        params.append({n: params[-1][n] + change for n, change in zip(names, changes, strict=True)})
    return Run(dict(theta), params, grads, losses, num_steps)
