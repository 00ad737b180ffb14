"""Prints the table for docs/baselines.md from the table of optimizers.

    python tools/baselines_table.py

The state is counted for one hidden matrix of 64×64 float32 parameters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from celo2.baselines import OPTIMIZERS, OptimizerSpec

SIZE = 64
HEADER = "| name | what it is | paper | code | tuned over | state |\n|---|---|---|---|---|---|"


def make_table() -> str:
    """Returns the Markdown table, with a row per optimizer."""
    return "\n".join((HEADER, *map(_make_row, OPTIMIZERS.values())))


def _make_row(spec: OptimizerSpec) -> str:
    low, high = spec.learning_rate_range
    cells = (
        f"`{spec.name}`",
        spec.description,
        spec.reference,
        f"`{spec.origin}`",
        f"{low:g} to {high:g}",
        f"{_count_state(spec):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _count_state(spec: OptimizerSpec) -> float:
    """Returns the number of floats of state per parameter."""
    params = {"layer": {"kernel": jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)}}
    state = jax.eval_shape(spec.make(1e-3, 0.0).init, params)
    floats = [leaf.size for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(floats) / SIZE**2


if __name__ == "__main__":
    print(make_table())
