"""Shared by the scripts in this folder: the declaration of an experiment, its stages, the command line.

A script declares an `Experiment` and calls `run`. It trains, stores, resumes and chooses with the code of
`celo2 evaluate` (`celo2.evaluate.suite`), as one suite per optimizer, since each has its own grid.

    OUT/settings.json   size, precision and length; all runs in the folder must have the same
    OUT/tuning/         the runs of all grids with one seed, as celo2 evaluate stores them
    OUT/final/          the best setting of each optimizer with other seeds
    OUT/table.md        our figures beside the papers'
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
from arguments import Arguments, command_of, parse
from grids import Grid
from plan import Need, describe_plan
from rich.console import Console
from table import Figure, Ours, format_table

from celo2._utils.files import read_object, write_atomic
from celo2.baselines import OPTIMIZERS, OptimizerSpec, register_optimizer
from celo2.evaluate.analysis.caveats import join
from celo2.evaluate.analysis.cells import Setting
from celo2.evaluate.analysis.standings import TaskRuns, arrange
from celo2.evaluate.progress import ProgressDisplay
from celo2.evaluate.suite.local import Failure, GroupProgress, Machine, train_groups
from celo2.evaluate.suite.results import RunResult, RunSpec
from celo2.evaluate.suite.run import run_suite
from celo2.evaluate.suite.spec import Group, Suite
from celo2.evaluate.suite.store import RunStore
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.tasks.base import Size
from celo2.tasks.registry import make_task

BFLOAT16 = "BF16_BF16_F32"  # JAX's name: operands are rounded to bfloat16, sums are float32
STEPS: Mapping[Size, int] = {"small": 1_000, "tiny": 20}  # of runs smaller than the published ones
SEEDS: Mapping[Size, int] = {"full": 3, "small": 2, "tiny": 2}  # for the best setting
TUNING_SEED, FIRST_FINAL_SEED = 0, 1


SHARED_DIFFERENCES = (  # from the published runs
    "Training examples are drawn with replacement, not permuted.",
    "The weights of celo2 are this package's own; --optimizers celo2:PATH takes others.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One published setting.

    Attributes:
        task: Name of the task in the package's registry.
        title: What is trained, on one line.
        steps: Length of a run at full size.
        grids: The grid of each optimizer.
        figures: The published figures, at full size.
        measure: What the published figures measure: the validation loss in nats, or the accuracy.
        need: The data set at full size, and where to put it.
        differences: How a run of this package differs from the published one, one sentence per difference.
        own: Optimizers that are not in the package's registry.
    """

    task: str
    title: str
    steps: int
    grids: Mapping[str, Grid]
    figures: tuple[Figure, ...]
    measure: Literal["loss", "accuracy"]
    need: Need
    differences: tuple[str, ...]
    own: tuple[OptimizerSpec, ...] = ()

    def grid(self, optimizer: str) -> Grid:
        """Returns the grid of an optimizer; `celo2:PATH` has the grid of `celo2`.

        Raises:
            ValueError: The experiment has no grid for it.
        """
        name = optimizer.partition(":")[0]
        if name not in self.grids:
            raise ValueError(
                f"no grid for {optimizer!r}: {self.task} tunes {', '.join(self.grids)}; other weights are "
                "named celo2:PATH."
            )
        return self.grids[name]


def run(experiment: Experiment) -> None:
    """Runs a script and caches compiled programs in OUT, since the runs of an optimizer share them."""
    arguments = parse(experiment, sys.argv[1:])
    if not arguments.dry_run and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(arguments.out / "compiled"))
    sys.exit(main(experiment, sys.argv[1:]))


def main(experiment: Experiment, argv: Sequence[str]) -> int:
    """Runs an experiment with these arguments.

    Returns:
        The exit status: 0; 1 if a run failed or an optimizer has no setting; 2 for an invalid call.
    """
    arguments = parse(experiment, argv)
    for spec in experiment.own:
        if spec.name not in OPTIMIZERS:
            register_optimizer(spec.name, spec)
    if arguments.data is not None:
        os.environ["CELO2_DATA"] = str(arguments.data)
    use_cpu_devices(arguments.devices or num_cores())
    precision = jax.config.values["jax_default_matmul_precision"]
    try:
        if arguments.bfloat16:
            jax.config.update("jax_default_matmul_precision", BFLOAT16)
        return _Experiment(experiment, arguments, argv).run()
    except (OSError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        jax.config.update("jax_default_matmul_precision", precision)


class _Experiment:
    """An experiment with the settings of a command line."""

    def __init__(self, experiment: Experiment, arguments: Arguments, argv: Sequence[str]) -> None:
        self._experiment, self._arguments = experiment, arguments
        size = arguments.size
        self._task = experiment.task if size == "full" else f"{experiment.task}@{size}"
        self._steps = arguments.steps or (experiment.steps if size == "full" else STEPS[size])
        self._seeds = arguments.seeds or SEEDS[size]
        self._optimizers = arguments.optimizers or tuple(experiment.grids)
        self._grids = {name: experiment.grid(name).shrunk(size) for name in self._optimizers}
        for name in arguments.set:
            if name not in self._optimizers:
                raise ValueError(f"--set names {name!r}, which is not among {', '.join(self._optimizers)}.")
        self._machine = Machine(
            devices=arguments.devices,
            max_memory=float("inf"),  # the engine below runs one at a time on each device
            rows_at_once=arguments.rows,
            checkpoint_seconds=60 * arguments.checkpoint_minutes,
        )
        self._console = Console(width=None if sys.stdout.isatty() else 160)
        self._tune_command = command_of(experiment, argv, stage="tune")

    def run(self) -> int:
        """Prints the plan, or trains missing runs and writes the table."""
        if self._arguments.dry_run:
            suites = [*self._tuning(), *(self._suite(name, (1e-3,), (0.0,)) for name in self._optimizers)]
            store = RunStore(self._arguments.out / "tuning")
            task = make_task(self._task)
            print(describe_plan(self._experiment, self._arguments, task, suites, store.load().results))
            return 0
        if self._arguments.size == "full":
            self._experiment.need.check()
        self._keep_settings()
        failures: list[Failure] = []
        if self._arguments.stage == "final":
            self._check_tuned()
        else:
            failures += self._train("tuning", self._tuning())
        best = self._best()
        if self._arguments.stage != "tune":
            suites = [self._suite(name, (rate,), (decay,)) for name, (rate, decay) in best.items()]
            failures += self._train("final", suites)
        self._write_table(best)
        for failure in failures:
            print(f"failed: {failure.group.optimizer}: {failure.reason}", file=sys.stderr)
        return 1 if failures or len(best) < len(self._optimizers) else 0

    def _tuning(self) -> list[Suite]:
        """Returns a suite for each optimizer whose setting is not given."""
        return [
            dataclasses.replace(self._suite(name, grid.rates, grid.decays), seeds=1, first_seed=TUNING_SEED)
            for name, grid in self._grids.items()
            if name not in self._arguments.set
        ]

    def _declared(self) -> dict[str, list[RunSpec]]:
        """Returns the tuning runs of each optimizer whose setting is not given."""
        return {
            suite.optimizers[0]: [spec for group in suite.groups(self._task) for spec in group.specs()]
            for suite in self._tuning()
        }

    def _suite(self, optimizer: str, rates: tuple[float, ...], decays: tuple[float, ...]) -> Suite:
        return Suite(
            name=self._experiment.task,
            tasks=(self._task,),
            optimizers=(optimizer,),
            rates_of={optimizer: rates},
            weight_decays=decays,
            seeds=self._seeds,
            first_seed=FIRST_FINAL_SEED,
            steps=self._steps,
        )

    def _train(self, stage: str, suites: Sequence[Suite]) -> list[Failure]:
        """Trains the missing runs of a stage; interrupted runs continue from their checkpoints."""
        failures: list[Failure] = []
        for suite in suites:
            self._console.print(f"{stage}: {suite.optimizers[0]}, {suite.count_runs()} runs", highlight=False)
            with ProgressDisplay(self._console) as display:
                failures += run_suite(
                    suite,
                    RunStore(self._arguments.out / stage),
                    machine=self._machine,
                    engine=one_run_a_device,
                    on_progress=display,
                )
        return failures

    def _check_tuned(self) -> None:
        """Raises a ValueError if tuning runs are missing: the best of the rest may not be the best of all."""
        stored = {result.spec for result in self._stored("tuning")}
        lines = []
        for name, specs in self._declared().items():
            missing = [str(Setting.of(spec)) for spec in specs if spec not in stored]
            if missing:
                lines.append(f"  {name}: {len(missing)} of {len(specs)} missing: {join(missing)}")
        if lines:
            tuning, those = self._arguments.out / "tuning", "\n".join(lines)
            raise ValueError(
                f"the tuning in {tuning} is not finished, so that the best setting is not known:\n{those}\n"
                f"finish it with\n  {self._tune_command}\nor name the setting with --set NAME=RATE,DECAY."
            )

    def _best(self) -> dict[str, tuple[float, float]]:
        """Returns each optimizer's learning rate and weight decay: as given, or with the lowest loss."""
        tuned = self._load("tuning")
        best = dict(self._arguments.set)
        for name in self._optimizers:
            cell = tuned.cells.get(name) if tuned else None
            if name not in best and cell is not None and cell.best is not None:
                best[name] = (cell.best.learning_rate, cell.best.weight_decay)
            elif name not in best:
                print(
                    f"{name} has no setting whose run ended without diverging; name one with --set "
                    f"{name}=RATE,DECAY.",
                    file=sys.stderr,
                )
        return best

    def _stored(self, stage: str) -> list[RunResult]:
        """Returns a stage's finished runs of the chosen optimizers; in tuning, of the declared grids."""
        found = RunStore(self._arguments.out / stage).load().results
        declared = self._declared() if stage == "tuning" else {}
        return [
            result
            for result in found
            if (name := result.spec.optimizer) in self._optimizers
            and result.spec in declared.get(name, [result.spec])
        ]

    def _load(self, stage: str) -> TaskRuns | None:
        """Returns a stage's runs of the chosen optimizers, arranged; None if there are none."""
        stored = self._stored(stage)
        return arrange(stored).tasks[0] if stored else None

    def _write_table(self, best: Mapping[str, tuple[float, float]]) -> None:
        tuned, final = self._load("tuning"), self._load("final")
        if tuned is None and final is None:
            return
        stored, declared = {result.spec for result in self._stored("tuning")}, self._declared()
        ours = []
        for name, grid in self._grids.items():
            finished = [spec in stored for spec in declared.get(name, [])]
            ours.append(Ours.of(name, tuned, final, best.get(name), grid, finished))
        shown = final or tuned
        assert shown is not None
        text = format_table(self._experiment, self._arguments.size, shown, ours)
        write_atomic(self._arguments.out / "table.md", text.encode())
        print(text)

    def _keep_settings(self) -> None:
        """Writes the settings that all runs in a folder share.

        Raises:
            ValueError: The folder has runs with other settings.
        """
        settings: dict[str, Any] = {
            "task": self._task,
            "steps": self._steps,
            "bfloat16": self._arguments.bfloat16,
        }
        path = self._arguments.out / "settings.json"
        known = read_object(path) if path.exists() else settings
        if known != settings:
            raise ValueError(
                f"{self._arguments.out} has runs with {known}, and now {settings} were asked for; use "
                "another --out."
            )
        self._arguments.out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(settings, indent=1).encode())


def one_run_a_device(
    tasks: Sequence[Sequence[Group]], machine: Machine, on_progress: Callable[[GroupProgress], None]
) -> Iterator[list[RunResult] | Failure]:
    """Trains as many runs at a time as there are devices; an engine for `run_suite`.

    Each run has its own device; finished runs are stored while the others continue.
    """
    width = machine.devices or len(jax.local_devices())
    for group in (group for groups in tasks for group in groups):
        for part in split_group(group, width):
            yield from train_groups([part], machine, on_progress)


def split_group(group: Group, width: int) -> list[Group]:
    """Splits runs into groups of at most `width`, each with a single seed or a single learning rate."""
    if len(group.seeds) == 1:
        rates = group.learning_rates
        return [group._replace(learning_rates=rates[at : at + width]) for at in range(0, len(rates), width)]
    return [
        group._replace(learning_rates=(rate,), seeds=group.seeds[at : at + width])
        for rate in group.learning_rates
        for at in range(0, len(group.seeds), width)
    ]
