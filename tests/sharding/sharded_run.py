"""Runs the rule on eight simulated devices and prints, as JSON, how it compares with one.

A script of its own, since a process cannot change its number of devices; `test_sharding.py` runs it.
"""

from __future__ import annotations

import json
import os
import re

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import celo2

SHAPES = {"up": (256, 512), "down": (512, 256), "square": (256, 256), "bias": (512,), "stack": (4, 128, 256)}
LAYOUTS = {
    "data": {name: PartitionSpec() for name in SHAPES},
    "tensor": {
        "up": PartitionSpec(None, "model"),
        "down": PartitionSpec("model", None),
        "square": PartitionSpec(None, "model"),
        "bias": PartitionSpec("model"),
        "stack": PartitionSpec(None, None, "model"),
    },
    "fully-sharded": {
        "up": PartitionSpec("data", "model"),
        "down": PartitionSpec("model", "data"),
        "square": PartitionSpec(("data", "model"), None),
        "bias": PartitionSpec(("data", "model")),
        "stack": PartitionSpec("data", "model", None),
    },
}
STEPS = 3
TINY = 1e-30  # in place of the largest entry of a state that is zero
COLLECTIVE = re.compile(r"= (\S.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)\(")
SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def make_tree(seed: int, scale: float) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()
    }


def run(rule, params, grads) -> tuple[list, object, str]:
    state = jax.jit(rule.init)(params)
    step = jax.jit(rule.update).lower(grads[0], state, params).compile()
    updates = []
    for grad in grads:
        update, state = step(grad, state, params)
        updates.append(update)
    return updates, state, step.as_text()


def largest_collectives(text: str) -> dict[str, int]:
    """Elements of the largest array that each kind of collective makes."""
    largest: dict[str, int] = {}
    for shapes, kind in COLLECTIVE.findall(text):
        for dims in SHAPE.findall(shapes):
            size = int(np.prod([int(dim) for dim in dims.split(",") if dim]))
            largest[kind] = max(largest.get(kind, 0), size)
    return largest


def error(actual, expected) -> float:
    """Largest difference over the largest entry, over all leaves."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    errors = [
        np.abs(np.asarray(a) - np.asarray(e)).max() / max(np.abs(np.asarray(e)).max(), TINY) for a, e in pairs
    ]
    return float(np.max(errors))  # NaN if one of them is


def main() -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params, grads = make_tree(0, 0.02), [make_tree(seed, 1e-3) for seed in range(1, STEPS + 1)]
    found = {}
    for variant, orthogonalize in (("celo2", True), ("celo2-base", False)):
        rule = celo2.scale_by_celo2(orthogonalize=orthogonalize)
        expected, expected_state, _ = run(rule, params, grads)
        for name, specs in LAYOUTS.items():
            shardings = {leaf: NamedSharding(mesh, spec) for leaf, spec in specs.items()}
            placed = [jax.device_put(tree, shardings) for tree in (params, *grads)]
            updates, state, text = run(rule, placed[0], placed[1:])
            full = [tree for family in (state.momentum, state.rms) for tree in family]
            found[f"{variant} {name}"] = {
                "update_error": error(updates, expected),
                "state_error": error(state, expected_state),
                "state_inherits": all(
                    tree[leaf].sharding.is_equivalent_to(shardings[leaf], tree[leaf].ndim)
                    for tree in full
                    for leaf in SHAPES
                ),
                "updates_inherit": all(
                    updates[-1][leaf].sharding.is_equivalent_to(shardings[leaf], len(SHAPES[leaf]))
                    for leaf in SHAPES
                ),
                "collectives": largest_collectives(text),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
