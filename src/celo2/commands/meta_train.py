"""`celo2 meta-train`: meta-trains a rule."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from celo2._utils.checks import check_devices
from celo2.commands._arguments import make_registry, peek, take_part
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.meta.config import RECIPE_ONLY, MetaConfig
from celo2.meta.probe import ProbeConfig
from celo2.meta.run.distributed import (
    ProcessLostError,
    is_first,
    join,
    leave,
    leaving_on_error,
)
from celo2.meta.run.errors import MetaGradientError, RunWriteError
from celo2.meta.run.folder import with_start_beside
from celo2.meta.run.options import TrainOptions, read_options
from celo2.meta.run.recipe import RECIPE_FILE, read_recipe
from celo2.meta.train import meta_train

_DESCRIPTION = """\
Meta-trains the Celo2 rule, or one of its predecessors, with persistent evolution strategies on small
networks: image classifiers, or a mix of families. Ctrl-C saves a checkpoint and ends the run; --resume with
the folder continues it with its recipe, to the same result. With --probe-every, the weights are tested on
other kinds of networks from time to time, and OUT/best.safetensors has those that trained them best.

examples:
  celo2 meta-train --variant celo2 --outer-steps 3600 --out runs/celo2
  celo2 meta-train --out runs/celo2 --probe-every 400 --probe-seeds 2
  celo2 meta-train --out runs/celo2 --sinks tensorboard wandb
  celo2 meta-train --resume --out runs/celo2
  celo2 meta-train --resume --out runs/celo2 --outer-steps 7200
  celo2 meta-train --families mlp:4 conv:2 transformer quadratic --outer-steps 3600 --out runs/mix
  celo2 meta-train --config runs/celo2/config.json --seed 1 --out runs/again
  celo2 meta-train --variant celo --phase 1 --outer-learning-rate 3e-4 --out runs/celo-1
  celo2 meta-train --variant celo --phase 2 --start runs/celo-1/weights/celo-003600.safetensors --out runs/two
  celo2 meta-train --out /shared/run --coordinator 10.0.0.1:9876 --num-processes 2 --process-id 0
  celo2 meta-train --out /shared/run --coordinator 10.0.0.1:9876 --num-processes 2 --process-id 1
  srun celo2 meta-train --out /shared/run --distributed auto
  celo2 report runs/celo2
  celo2 compare --optimizers celo2:runs/celo2/best.safetensors,adamw
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ProbeFlags(ProbeConfig):
    """Settings of the probes, as flags that begin with `--probe`."""

    task_set: Annotated[str, tyro.conf.arg(name="probe-set")] = ProbeConfig.task_set
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(name="probe-tasks")] = ProbeConfig.tasks
    seeds: Annotated[int, tyro.conf.arg(name="probe-seeds")] = ProbeConfig.seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TrainFlags(TrainOptions):
    """Options of running and observing a recipe."""

    probe: Annotated[_ProbeFlags, tyro.conf.arg(name="")] = dataclasses.field(default_factory=_ProbeFlags)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices and processes of a run.

    Attributes:
        devices: Number of host devices that share the pairs on a CPU; 0: one per core, or fewer if that many
            cannot share every family's pairs equally.
        distributed: Whether several processes form one run. "auto": this process was started by a cluster
            (Slurm, Open MPI, Kubernetes, Cloud TPU).
        coordinator: HOST:PORT where the others reach process 0, unless a cluster provides it; any port that
            is free there.
        num_processes: Total number of processes, started with the same command except for PROCESS_ID.
        process_id: Index of this process, from 0; process 0 prints and writes.
    """

    devices: int = 0
    distributed: Literal["off", "auto"] = "off"
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The command-line words for these options, except the process's own."""
        words = ["--devices", str(self.devices)] if self.devices else []
        words += ["--distributed", self.distributed] if self.distributed != "off" else []
        words += ["--coordinator", self.coordinator] if self.coordinator else []
        words += ["--num-processes", str(self.num_processes)] if self.num_processes else []
        return tuple(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaTrainCommand:
    """Arguments of `celo2 meta-train`: a recipe, the options of the run, and the machine.

    Attributes:
        config: Recipe to repeat, the config.json of a run; other options on the command line override it.
    """

    config: Path | None = None
    flags: Annotated[_TrainFlags, tyro.conf.arg(name="")]
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine()
    recipe: Annotated[MetaConfig, tyro.conf.arg(name="")]

    @property
    def options(self) -> TrainOptions:
        """The options of the run."""
        probe = take_part(self.flags.probe, ProbeConfig)
        options = take_part(self.flags, TrainOptions)
        return dataclasses.replace(options, probe=probe, machine_words=self.machine.words)


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 meta-train`; returns the exit status: 0, 1 if it stopped itself, 2 if it cannot run."""
    try:
        command = _parse(argv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with leaving_on_error():
        status = _train(command)
    if status:
        leave(status)
    return status


def _train(command: MetaTrainCommand) -> int:
    machine = command.machine
    try:
        check_devices(machine.devices)
        num_processes = _join_others(machine, command.recipe)
        use_cpu_devices(machine.devices or _choose_devices(command.recipe, num_processes))
        path = meta_train(command.recipe, command.options)
    except (MetaGradientError, ProcessLostError, RunWriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if is_first():
        print(f"weights: {path}")
    return 0


def _join_others(machine: Machine, recipe: MetaConfig) -> int:
    """Joins the other processes, if any; returns the maximum number that may share the pairs."""
    words = (machine.coordinator, machine.num_processes, machine.process_id)
    if words != (None, None, None):
        join(*words)
        return machine.num_processes or 1
    if machine.distributed == "auto":
        join()
        return recipe.num_pairs  # JAX reports their number only when devices can no longer be chosen
    return 1


def _parse(argv: Sequence[str]) -> MetaTrainCommand:
    """Parses the command, with the recipe of `--config` or of the resumed run as defaults.

    Raises:
        OSError: A file of the recipe cannot be read.
        ValueError: A file is damaged, or an option is out of its range or has no flag.
    """
    _refuse_recipe_only(argv)
    known = peek(argv)
    file, recipe, before = known.config, MetaConfig(), {}
    if known.resume and known.out and (known.out / RECIPE_FILE).exists():
        recipe, before = read_recipe(known.out), read_options(known.out)
    if file is not None:
        recipe = MetaConfig.load(file)
    probe = _ProbeFlags(**before.get("probe", {}))
    command = tyro.cli(
        MetaTrainCommand,
        default=MetaTrainCommand(
            flags=_TrainFlags(**{**before, "out": tyro.MISSING, "probe": probe}), recipe=recipe
        ),
        args=list(argv),
        prog="celo2 meta-train",
        description=_DESCRIPTION,
        registry=make_registry(commas=False),
    )
    now = dataclasses.asdict(command.flags)
    for name, value in before.items():
        if now[name] != value:
            print(f"{name}: {value} before, {now[name]} from now on.")
    out = command.flags.out
    if file is None or command.recipe.start != recipe.start or file.parent.resolve() == out.resolve():
        return command
    return dataclasses.replace(command, recipe=with_start_beside(command.recipe, file))


def _refuse_recipe_only(argv: Sequence[str]) -> None:
    """Refuses flags for options that can only be set in a recipe file.

    Raises:
        ValueError: There is such a flag; the message says what to do.
    """
    for word in argv:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in RECIPE_ONLY:
            raise ValueError(
                f'{name} has no flag: write it into a recipe file, such as {{"{name}": …}}, and give that: '
                "--config FILE. Options that the file lacks have their defaults."
            )


def _choose_devices(recipe: MetaConfig, num_processes: int) -> int:
    """Returns `_default_devices`, with a note if another split of the same pairs would allow more."""
    counts = recipe.pairs_by_family
    chosen = _default_devices(counts.values(), num_processes)
    possible = _default_devices([recipe.num_pairs], num_processes)
    if chosen < possible:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"devices: {chosen}; {possible} could share {recipe.num_pairs} pairs, but not {listed}")
    return chosen


def _default_devices(counts: Iterable[int], num_processes: int) -> int:
    """Returns the maximum number of devices, up to one per core, that share every family's pairs equally."""
    common = max(math.gcd(*counts) // num_processes, 1)
    return next(count for count in range(min(num_cores(), common), 0, -1) if common % count == 0)
