"""`celo2 evaluate`: trains a suite of tasks with equally tuned optimizers, into a folder of runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from celo2._utils.checks import check_devices, check_memory, check_out_folder
from celo2.baselines import check_optimizer_name, describe_optimizers, qualified_name
from celo2.commands._arguments import asks_for_help, make_registry, peek_devices
from celo2.commands._suite_report import run_and_report
from celo2.evaluate.suite.local import Machine
from celo2.evaluate.suite.run import run_locally
from celo2.evaluate.suite.spec import ALL, Suite, load_suite
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.tasks.registry import describe_tasks

PLAIN_WIDTH = 160  # columns if the output is not a terminal

_DESCRIPTION = """\
Trains the tasks of a suite with every optimizer, each tuned over the same number of learning rates and
weight decays, with several seeds. Each run has its own folder in OUT. The same command continues where it
was stopped (Ctrl-C, a crash, kill -9), and with more seeds, tasks or optimizers it adds the missing runs. It
ends with tables, a page, plots and CSV files, which celo2 report OUT writes at any time.

examples:
  celo2 evaluate --suite tiny --out runs/tiny
  celo2 evaluate --suite small --optimizers celo2,mine.safetensors,adamw,muon --out runs/mine
  celo2 evaluate --suite small --learning-rates adamw=1e-3,3e-3,1e-2 --seeds 5 --out runs/more
  celo2 evaluate --suite full --tasks VIT_Cifar100_skinnydeep,vit-s16 --weight-decays 0 0.1 --out runs/vit
  celo2 evaluate --suite my-suite.toml --out runs/my-suite --ray auto
  celo2 report runs/tiny

A suite of your own is a TOML file:
  tasks = ["Conv_Cifar10_32x64x64@small", "fashion-mlp"]
  optimizers = ["celo2", "adamw"]
  num_learning_rates = 7
  seeds = 3
  steps = 2000
  [steps_of]
  fashion-mlp = 500
  [rates_of]
  adamw = [1e-3, 3e-3, 1e-2]

tasks (those marked * also as NAME@tiny and NAME@small; your own as package.module:make_task):
{tasks}

optimizers (and weights by path or hub repository, see celo2 compare --help; your own as package.module:make):
{optimizers}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Arguments of `celo2 evaluate`; the suite provides those that are not given."""

    out: Path
    """Folder for the runs and the report."""
    suite: str = "tiny"
    """tiny (minutes on two cores), small (hours to a day on a CPU, an estimate), full (accelerators), or the
    path of a TOML or JSON file."""
    tasks: tuple[str, ...] = ()
    """Tasks to use; none: the suite's."""
    optimizers: tuple[str, ...] = ()
    """Optimizers to use; none: the suite's."""
    num_learning_rates: int = 0
    """Number of values in each optimizer's default grid; 0: the suite's."""
    learning_rates: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Learning rates of all optimizers, or by name, instead of their default grids."""
    weight_decays: list[float] = dataclasses.field(default_factory=list)
    """Decoupled weight decays, multiplied by the learning rate; each is tried with every learning rate;
    none: the suite's."""
    seeds: int = 0
    """Number of runs per setting; 0: the suite's."""
    steps: int = 0
    """Length of every run; 0: the suite's."""
    schedule: str = ""
    """Learning-rate schedule: cosine, linear or constant, after a warm-up over 5 % of the steps; empty: the
    suite's."""
    baseline: str = "adamw"
    """Optimizer that the report's scores are relative to."""
    refine: Literal["suite", "yes", "no"] = "suite"
    """Try two more rates for each optimizer, between its best and the neighbours, or beyond the edge;
    "suite": as in the suite."""
    rank_by: Literal["suite", "validation", "training"] = "suite"
    """Loss that optimizers are tuned and ranked by; tasks without validation data are ranked by the training
    loss or the return."""
    devices: int = 0
    """Number of local devices to use; 0: all."""
    max_memory: float = 4.0
    """Maximum memory in GiB for runs that are trained together."""
    ray: str | None = None
    """Address of a Ray cluster that shares the work ("auto", or HOST:PORT); needs celo2[ray]."""


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 evaluate` with these arguments.

    Returns:
        The exit status: 0; 1 if a run could not be trained or the report could not be written; 2 for an
        invalid call; 130, 143 or 129 if a signal ended it.
    """
    use_cpu_devices(peek_devices(argv) or num_cores())
    command = tyro.cli(
        EvaluateCommand,
        prog="celo2 evaluate",
        description=_describe() if asks_for_help(argv) else "",
        args=list(argv),
        registry=make_registry(),
    )
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    try:
        _check_spelling(command)
        check_devices(command.devices)
        check_memory(command.max_memory)
        baseline = qualified_name(command.baseline)
        check_optimizer_name(baseline)
        check_out_folder(command.out)
        suite = _suite(command)
        engine = _ray_engine(command.ray) if command.ray else run_locally
        suite.count_runs()  # raises for weights that cannot be loaded
    except (OSError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_and_report(
        suite,
        command.out,
        console,
        machine=Machine(command.devices, command.max_memory * 2**30),
        engine=engine,
        baseline=baseline,
    )


def _check_spelling(command: EvaluateCommand) -> None:
    """Raises a ValueError for a number of learning rates instead of rates, an earlier syntax."""
    rates = command.learning_rates.get(ALL, ())
    if len(rates) == 1 and rates[0] >= 1 and rates[0].is_integer():
        raise ValueError(
            f"--learning-rates takes rates, as in celo2 compare, got {rates[0]:g}; how many of each default "
            f"grid: --num-learning-rates {rates[0]:g}."
        )


def _suite(command: EvaluateCommand) -> Suite:
    """Returns the suite with the changes from the command line."""
    asked = {
        "tasks": command.tasks,
        "optimizers": command.optimizers,
        "num_learning_rates": command.num_learning_rates,
        "weight_decays": tuple(command.weight_decays),
        "seeds": command.seeds,
        "steps": command.steps,
        "schedule": command.schedule,
        "rank_by": command.rank_by if command.rank_by != "suite" else "",
    }
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value}
    if command.refine != "suite":
        changes["refine"] = command.refine == "yes"
    if command.steps:
        changes["steps_of"] = {}
    if command.num_learning_rates:
        changes["rates_of"] = {}
    return load_suite(command.suite, **changes).with_rates(command.learning_rates)


def _ray_engine(address: str) -> Any:
    from celo2.evaluate.suite.ray import make_ray_engine

    return make_ray_engine(address)


def _describe() -> str:
    return _DESCRIPTION.format(
        tasks=describe_tasks(),
        optimizers=describe_optimizers(),
    )
