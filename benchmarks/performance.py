"""Runs the measurements of `celo2 bench` on every tree and writes the tables into docs/performance.md.

    make bench

Replaces each table between `<!-- NAME -->` and `<!-- end -->` in the page; `--only` selects some of them.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from pages import DOCS, format_machine, format_table, replace_table

import celo2
from celo2.baselines import register_optimizer
from celo2.evaluate.bench import COLUMNS, BenchRow, bench_tree, bench_whole_step
from celo2.evaluate.bench_trees import TREES
from celo2.evaluate.environment import describe_environment
from celo2.jax.runtime import compiler_options

PAGE = DOCS / "performance.md"
OPTIMIZERS = ("adamw", "muon", "celo2-base", "celo2")
EVERY_UNIT, SMALL_STATE = "8-units", "bfloat16-state"  # suffixes of optimizer names


class Table(NamedTuple):
    """Table of the page.

    Attributes:
        tree: Name of the parameter tree; None: the whole training step of a small GPT.
        optimizers: The rows.
        dtype: The dtype of parameters and gradients.
        default_options: Whether XLA's default options are used.
    """

    tree: str | None
    optimizers: tuple[str, ...] = OPTIMIZERS
    dtype: str = "float32"
    default_options: bool = False


TABLES = {
    "mlp": Table("mlp"),
    "vit-s": Table("vit-s"),
    "gpt2-15m": Table("gpt2-15m"),
    "gpt2-124m": Table("gpt2-124m"),
    "gpt3-xl": Table("gpt3-xl"),
    "whole-step": Table(None),
    "default-options": Table("gpt2-15m", default_options=True),
    "every-unit": Table("gpt2-15m", ("muon", f"celo2-base-{EVERY_UNIT}", f"celo2-{EVERY_UNIT}")),
    "bfloat16": Table(
        "gpt2-15m", (*OPTIMIZERS, f"celo2-base-{SMALL_STATE}", f"celo2-{SMALL_STATE}"), dtype="bfloat16"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", choices=TABLES, default=list(TABLES), help="the tables to measure"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="timing of one table")
    options = parser.parse_args()
    _register_variants()
    machine = describe_environment()
    for name in options.only:
        print(f"{name}:")
        rows = [row.cells() for row in _measure(TABLES[name], options.seconds)]
        table = format_table(COLUMNS, rows) + format_machine(machine)
        print(table)
        replace_table(PAGE, name, table)


def _register_variants() -> None:
    """Registers the rule with a network whose units are all used, and with bfloat16 state."""
    config = celo2.RuleConfig()
    generator = np.random.default_rng(0)
    weights = {
        name: generator.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in config.weight_shapes().items()
    }
    for name, make in (("celo2-base", celo2.celo2_base), ("celo2", celo2.celo2)):
        register_optimizer(f"{name}-{EVERY_UNIT}", partial(make, weights=weights))
        register_optimizer(f"{name}-{SMALL_STATE}", partial(make, state_dtype="bfloat16"))


def _measure(table: Table, seconds: float) -> list[BenchRow]:
    options = None if table.default_options else compiler_options()
    if table.tree is None:
        return bench_whole_step(table.optimizers, budget=seconds, options=options, on_progress=print)
    spec = TREES[table.tree]
    tree = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, table.dtype), spec.make())
    return bench_tree(
        tree, table.optimizers, timed=spec.timed, budget=seconds, options=options, on_progress=print
    )


if __name__ == "__main__":
    main()
