"""`celo2 bench`: measures the cost of an optimizer step."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from celo2._utils.checks import check_out_file
from celo2._utils.files import write_atomic
from celo2._utils.signals import exit_status
from celo2.baselines import describe_optimizers, find_optimizer
from celo2.commands._arguments import make_registry
from celo2.evaluate.bench import (
    COLUMNS,
    NUM_STEPS,
    BenchRow,
    BenchStopped,
    bench_tree,
    bench_whole_step,
)
from celo2.evaluate.bench_trees import TREES, count_parameters
from celo2.evaluate.environment import describe_environment
from celo2.jax.runtime import compiler_options
from celo2.report.kit import cell

_DESCRIPTION = """\
Measures a step of several optimizers on one parameter tree, taking turns in one process: its time, the
ratio to optax.adamw's (the figure that carries over to other machines), the compile time, and the bytes of
state and temporaries. A step computes the update and applies it, with donated buffers, in float32, compiled
with celo2.compiler_options(), which you should pass to jax.jit on a CPU, too.

examples:
  celo2 bench --tree gpt2-15m
  celo2 bench --tree gpt2-124m --optimizers adamw,celo2-base --json bench.json
  celo2 bench --optimizers adamw,muon,celo2,mine.safetensors,amoudgl/celo
  celo2 bench --whole-step

trees:
{trees}

optimizers (and weights by path or hub repository, see celo2 compare --help):
{optimizers}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Arguments of `celo2 bench`."""

    tree: str = "gpt2-15m"
    """Name of the parameter tree."""
    optimizers: tuple[str, ...] = ("adamw", "muon", "celo2-base", "celo2")
    """Names of the optimizers; adamw is always included."""
    seconds: float = 20.0
    """Time for the rounds, excluding compilation; at least five rounds are run."""
    whole_step: bool = False
    """Time the training step of a small GPT, including loss and gradient, instead of the optimizer alone."""
    default_options: bool = False
    """Compile with XLA's default options instead of `celo2.compiler_options`."""
    json: Path | None = None
    """Also write the figures, the machine and the commit to this file."""

    def __post_init__(self) -> None:
        """Checks the tree's name and the time."""
        if self.tree not in TREES:
            raise ValueError(f"unknown tree {self.tree!r}; there are {', '.join(TREES)}.")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be positive and finite, got {self.seconds}.")


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 bench`; returns the exit status."""
    try:
        command = tyro.cli(
            BenchCommand,
            prog="celo2 bench",
            description=_describe(),
            args=list(argv),
            registry=make_registry(),
        )
        if command.json:
            check_out_file(command.json)
        for name in command.optimizers:
            find_optimizer(name, num_steps=NUM_STEPS)
    except (OSError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def show_progress(line: str) -> None:
        print(line, file=sys.stderr)

    status, spec = 0, TREES[command.tree]
    tree = spec.make()
    what = f"one optimizer step on {command.tree}, {count_parameters(tree):,} parameters"
    if command.whole_step:
        what = "one training step of a small GPT"
    options: dict[str, Any] = {
        "budget": command.seconds,
        "options": None if command.default_options else compiler_options(),
        "on_progress": show_progress,
    }
    try:
        if command.whole_step:
            rows = bench_whole_step(command.optimizers, **options)
        else:
            rows = bench_tree(tree, command.optimizers, timed=spec.timed, **options)
    except BenchStopped as stop:
        rows, status = stop.rows, exit_status(stop)
        print(stop, file=sys.stderr)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(_make_table(rows, what))
    environment = describe_environment()
    console.print(
        ", ".join(f"{key} {value}" for key, value in environment.items()), highlight=False, markup=False
    )
    if command.json:
        record = {"what": what, "finished": status == 0, "environment": environment}
        record["rows"] = [row._asdict() for row in rows]
        write_atomic(command.json, (json.dumps(record, indent=2) + "\n").encode())
    return status


def _make_table(rows: Sequence[BenchRow], what: str) -> Table:
    table = Table(title=escape(what), box=box.SIMPLE_HEAD)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row.cells()))
    return table


def _describe() -> str:
    return _DESCRIPTION.format(
        trees="\n".join(f"  {name:11} {spec.summary}" for name, spec in TREES.items()),
        optimizers=describe_optimizers(),
    )
