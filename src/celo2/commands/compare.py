"""`celo2 compare`: trains one task with several optimizers, side by side."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from celo2._utils.checks import check_out_folder
from celo2.baselines import describe_optimizers, find_optimizer
from celo2.commands._arguments import asks_for_help, make_registry, peek_devices
from celo2.commands._suite_report import run_and_report
from celo2.evaluate.comparison import CompareConfig
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.tasks.registry import describe_tasks
from celo2.zoo.specs import PRESETS

PLAIN_WIDTH = 160  # columns if the output is not a terminal

_DESCRIPTION = """\
Trains one task with several optimizers, each tuned over the same number of learning rates, and reports the
results as a table, figures, an interactive page and a summary. Each optimizer is represented by its runs at
the learning rate with the lowest final validation loss (--rank-by training: training loss). Ctrl-C keeps
finished runs; the same command with that folder as --out continues.

examples:
  celo2 compare --quick
  celo2 compare --task tiny-lm --optimizers celo2,adamw,muon --steps 1000 --seeds 3
  celo2 compare --optimizers celo2,mine.safetensors,adamw --learning-rates 1e-3,3e-3,1e-2
  celo2 compare --optimizers celo2,amoudgl/celo2,DiamondXL/elo-celo2,amoudgl/celo,muon
  celo2 compare --optimizers celo2,celo2-plus:mine.safetensors,velo_s:owner/name,adamw
  celo2 compare --learning-rates adamw=1e-3,1e-2 muon=1e-3,3e-3
  celo2 compare --task fashion-conv --rank-by training --out runs/conv
  celo2 compare --task mymodule:make_task --optimizers celo2,adamw,mymodule:make_optimizer

tasks (those marked * also as NAME@tiny and NAME@small; your own as package.module:make_task):
{tasks}

optimizers (and weights: a file by its path, a hub repository as OWNER/NAME. Put the optimizer's name and a
colon before them, as in celo2:PATH, celo2-base:PATH, celo2-plus:PATH, celo2-eigenbasis:PATH; it may be left
out if the file names it. Predecessors, which set their own step sizes and need weights:
{predecessors}):
{optimizers}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(CompareConfig):
    """Arguments of `celo2 compare`: the settings of a comparison and its output folder.

    Attributes:
        out: Folder for the runs and the report; none: runs/compare-TASK-TIME.
    """

    out: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 compare` with these arguments.

    Args:
        argv: The arguments after `celo2 compare`, such as `["--quick"]`.

    Returns:
        The exit status: 0; 1 if an optimizer failed or the report could not be written; 2 for an invalid
        call; 130, 143 or 129 if a signal ended it.

    Raises:
        SystemExit: The parser exits, for `--help` or wrong usage.
    """
    use_cpu_devices(peek_devices(argv) or num_cores())
    try:
        options = tyro.cli(
            CompareOptions,
            prog="celo2 compare",
            description=_describe() if asks_for_help(argv) else "",
            args=list(argv),
            registry=make_registry(),
        )
        out = options.out or _default_folder(options.task)
        check_out_folder(out)
        for name in options.optimizers:
            find_optimizer(name, num_steps=options.steps)
    except (OSError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    return run_and_report(
        options.suite(),
        out,
        console,
        machine=options.machine,
        baseline=options.baseline,
        command="celo2 compare",
    )


def _default_folder(task: str) -> Path:
    return Path("runs") / f"compare-{task}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _describe() -> str:
    return _DESCRIPTION.format(
        predecessors=", ".join(PRESETS),
        tasks=describe_tasks(),
        optimizers=describe_optimizers(),
    )
