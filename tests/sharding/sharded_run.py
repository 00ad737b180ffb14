"""Runs the rule on eight simulated devices and prints, as JSON, how it compares with one.

A script of its own, since a process cannot change its number of devices; `test_sharding.py` runs it.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import celo2

SHAPES = {
    "up": (256, 512),
    "gate": (256, 512),  # of the shape of "up", but not always of its sharding
    "down": (512, 256),
    "square": (256, 256),
    "bias": (512,),
    "scale": (512,),
    "stack": (4, 128, 256),
}
LAYOUTS = {
    "data": {name: PartitionSpec() for name in SHAPES},
    "tensor": {
        "up": PartitionSpec(None, "model"),
        "gate": PartitionSpec("model", None),
        "down": PartitionSpec("model", None),
        "square": PartitionSpec(None, "model"),
        "bias": PartitionSpec("model"),
        "scale": PartitionSpec(),
        "stack": PartitionSpec(None, None, "model"),
    },
    "fully-sharded": {
        "up": PartitionSpec("data", "model"),
        "gate": PartitionSpec("model", "data"),
        "down": PartitionSpec("model", "data"),
        "square": PartitionSpec(("data", "model"), None),
        "bias": PartitionSpec(("data", "model")),
        "scale": PartitionSpec("model"),
        "stack": PartitionSpec("data", "model", None),
    },
}
CONFIG = celo2.RuleConfig(  # every feature, of one decay: more repeat what is sharded, and compile long
    ff_hidden_size=2, initial_momentum_decays=(0.9,), initial_adafactor_decays=(0.9,), orthogonalize=True
)
STEPS = 3
IDLE = {"square": ..., "stack": 1, "scale": ...}  # in the last step the gradient is zero there
EXPLICIT = {"whole": "explicit", "harness": "explicit-harness"}  # variants run on explicit axes too
TINY = 1e-30  # in place of the largest entry of a state that is zero
COLLECTIVE = re.compile(r"= (\S.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)\(")
SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def make_weights(config: celo2.RuleConfig) -> celo2.Weights:
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in config.weight_shapes().items()}
    return celo2.Weights(arrays, config)


def make_optimizers() -> dict[str, tuple[optax.GradientTransformation, tuple[str, ...]]]:
    """Each with the layouts that it is run with."""
    matrices, base = make_weights(CONFIG), make_weights(CONFIG.replace(orthogonalize=False))
    rounded: dict[str, Any] = {"state_dtype": "bfloat16"}
    skip = {"skip_zero_gradients": True}
    parts = celo2.Harness(
        orthogonalizer="none",  # which would gather matrices
        row_decay=0.9,
        min_update_ratio=100.0,  # weights have a root mean square of 0.02, steps of 1: the floor acts
        cautious_decay=True,
        preserve_norms=True,
    )
    harnessed = celo2.celo2(1e-3, weights=matrices, weight_decay=0.1, harness=parts)
    return {
        "celo2": (celo2.scale_by_celo2(matrices, **skip), tuple(LAYOUTS)),
        "celo2-base": (celo2.scale_by_celo2(base, **skip), tuple(LAYOUTS)),
        "bfloat16": (celo2.scale_by_celo2(base, **skip, **rounded), ("fully-sharded",)),
        "whole": (celo2.celo2(1e-3, weights=matrices, weight_decay=0.1, **rounded), ("fully-sharded",)),
        "harness": (harnessed, tuple(LAYOUTS)),
    }


def make_tree(seed: int, scale: float) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()
    }


def run(rule, params, grads, *, jit_init: bool = True) -> tuple[list, object, str]:
    state = (jax.jit(rule.init) if jit_init else rule.init)(params)
    step = jax.jit(rule.update).lower(grads[0], state, params).compile()
    updates = []
    for grad in grads:
        update, state = step(grad, state, params)
        updates.append(update)
    return updates, state, str(step.as_text())


def largest_collectives(text: str) -> dict[str, int]:
    """Elements of the largest array that each kind of collective makes."""
    largest: dict[str, int] = {}
    for shapes, kind in COLLECTIVE.findall(text):
        for dims in SHAPE.findall(shapes):
            size = int(np.prod([int(dim) for dim in dims.split(",") if dim]))
            largest[kind] = max(largest.get(kind, 0), size)
    return largest


def inherits(tree, shardings) -> bool:
    """Whether every array of a parameter's name and shape is sharded as the parameter."""
    named = [
        (path[-1].key, leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if path and isinstance(path[-1], jax.tree_util.DictKey)
    ]
    full = [(shardings[name], leaf) for name, leaf in named if leaf.shape == SHAPES[name]]
    assert full
    return all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for sharding, leaf in full)


def error(actual, expected) -> float:
    """Largest difference over the largest entry, over all leaves."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    errors = [
        np.abs(np.asarray(a, np.float32) - np.asarray(e, np.float32)).max()
        / max(np.abs(np.asarray(e, np.float32)).max(), TINY)
        for a, e in pairs
    ]
    return float(np.max(errors))  # NaN if one of them is


def compare(found, expected, shardings) -> dict[str, object]:
    updates, state, text = found
    return {
        "update_error": error(updates, expected[0]),
        "state_error": error(state, expected[1]),
        "state_inherits": inherits(state, shardings),
        "updates_inherit": inherits(updates, shardings),
        "collectives": largest_collectives(text),
    }


def run_on_explicit_axes(rule, params, grads, *expected) -> dict[str, object]:
    """As `jax.make_mesh` makes them by itself: each array's type says how it lies."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        specs = LAYOUTS["fully-sharded"].items()
        shardings = {leaf: NamedSharding(mesh, spec) for leaf, spec in specs}
        placed = [jax.device_put(tree, shardings) for tree in (params, *grads)]
        found = run(rule, placed[0], placed[1:])

        def body(state, _):
            return rule.update(placed[1], state, placed[0])[1], None

        jax.jit(lambda state: jax.lax.scan(body, state, length=2)).lower(rule.init(placed[0]))
    return compare(found, expected, shardings)


def main() -> None:
    # Not above, since whoever collects doctests imports this file; JAX looks at both when it starts.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params, grads = make_tree(0, 0.02), [make_tree(seed, 1e-3) for seed in range(1, STEPS + 1)]
    last = grads[-1]
    idle_last = last | {name: last[name].at[idle].set(0.0) for name, idle in IDLE.items()}
    found = {}
    for variant, (rule, layouts) in make_optimizers().items():
        # A matrix that only decays and keeps its norm has an update of rounding: the harness has a busy one.
        busy = {"square": last["square"]} if variant == "harness" else {}
        grads[-1] = idle_last | busy
        expected, expected_state, _ = run(rule, params, grads)
        for name in layouts:
            shardings = {leaf: NamedSharding(mesh, spec) for leaf, spec in LAYOUTS[name].items()}
            placed = [jax.device_put(tree, shardings) for tree in (params, *grads)]
            # An init that reads parameters, jitted without output shardings, replicates all else.
            updates, state, text = run(rule, placed[0], placed[1:], jit_init=variant != "harness")
            found[f"{variant} {name}"] = compare(
                (updates, state, text), (expected, expected_state), shardings
            )
        if variant in EXPLICIT:
            found[f"{EXPLICIT[variant]} fully-sharded"] = run_on_explicit_axes(
                rule, params, grads, expected, expected_state
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
