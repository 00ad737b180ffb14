"""`celo2 meta-train`: meta-trains a rule."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from celo2._utils.checks import check_devices
from celo2.commands._arguments import make_registry
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.meta.config import MetaConfig
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
from celo2.meta.run.recipe import OPTIONS_FILE, RECIPE_FILE, read_options, read_recipe
from celo2.meta.train import TrainOptions, meta_train

_DESCRIPTION = """\
Meta-trains the Celo2 rule, or one of its predecessors, with persistent evolution strategies on small
networks: image classifiers, or a mix of families. Ctrl-C saves a checkpoint and ends the run; --resume with
the folder continues it, with its recipe and to the same result. With --probe-every, networks of other kinds
are trained now and then, and OUT/best.safetensors is what trained them best.

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
class MetaTrainCommand:
    """Arguments of `celo2 meta-train`: a recipe, and how it is run."""

    recipe: Annotated[MetaConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run: recipe, metrics, checkpoints, weights."""
    config: Path | None = None
    """Recipe to repeat, the config.json of a run; options given beside it replace those in the file."""
    outer_steps: int = 3600
    """Outer iterations in all; a resumed run continues up to it."""
    resume: bool = False
    """Continue the run in OUT from its last checkpoint, with the recipe and options that it has."""
    checkpoint_every: int = 200
    """Outer iterations between checkpoints."""
    max_skipped: float = 0.05
    """Share of the last SKIP_WINDOW meta-gradients that may be skipped because they are not finite; one more
    ends the run with an error."""
    skip_window: int = 200
    """Outer iterations over which skipped ones are counted."""
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the numbers go beside OUT/metrics.jsonl; needs celo2[watch]."""
    probe_every: int = 0
    """Outer iterations between probes, which choose OUT/best.safetensors; 0: never."""
    probe_set: str = ProbeConfig().task_set
    """Declared set of tasks that a probe trains, a name or a TOML file."""
    probe_tasks: tuple[str, ...] = ()
    """Which of the set's tasks; none: all."""
    probe_seeds: int = 0
    """Runs of each task and rate; 0: as many as the set says."""
    devices: int = 0
    """Host devices that share the pairs on a CPU; 0: as many as there are cores, or fewer where that many
    cannot share every family's pairs equally."""
    distributed: Literal["off", "auto"] = "off"
    """Several processes as one run. "auto": this is one of those that a cluster has started (Slurm, Open MPI,
    Kubernetes, Cloud TPU)."""
    coordinator: str | None = None
    """HOST:PORT where the others reach process 0, if no cluster says so; any port that is free there."""
    num_processes: int | None = None
    """Processes in all, each started with the same command but for its PROCESS_ID."""
    process_id: int | None = None
    """Which of them this is, from 0; number 0 prints and writes."""

    @property
    def machine_words(self) -> tuple[str, ...]:
        """The flags of the machine, as in `TrainOptions`."""
        words = ["--devices", str(self.devices)] if self.devices else []
        words += ["--distributed", self.distributed] if self.distributed != "off" else []
        words += ["--coordinator", self.coordinator] if self.coordinator else []
        words += ["--num-processes", str(self.num_processes)] if self.num_processes else []
        return tuple(words)

    @property
    def probe(self) -> ProbeConfig:
        """The settings of the probes."""
        return ProbeConfig(task_set=self.probe_set, tasks=self.probe_tasks, seeds=self.probe_seeds)


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
    try:
        check_devices(command.devices)
        num_processes = _join_others(command)
        use_cpu_devices(command.devices or _choose_devices(command.recipe, num_processes))
        options = TrainOptions(
            **{field.name: getattr(command, field.name) for field in dataclasses.fields(TrainOptions)}
        )
        path = meta_train(command.recipe, options)
    except (MetaGradientError, ProcessLostError, RunWriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if is_first():
        print(f"weights: {path}")
    return 0


def _join_others(command: MetaTrainCommand) -> int:
    """Joins the other processes, if any; returns the most that may share the pairs."""
    words = (command.coordinator, command.num_processes, command.process_id)
    if words != (None, None, None):
        join(*words)
        return command.num_processes or 1
    if command.distributed == "auto":
        join()
        return (
            command.recipe.num_pairs
        )  # JAX reports their number only once devices cannot be chosen any more
    return 1


def _parse(argv: Sequence[str]) -> MetaTrainCommand:
    """Parses the command, with the recipe of `--config` or of the resumed run as defaults.

    Raises:
        OSError, ValueError: The files of the recipe cannot be read.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config", type=Path)
    early.add_argument("--out", type=Path)
    early.add_argument("--resume", action="store_true")
    try:
        known = early.parse_known_args(list(argv))[0]
    except argparse.ArgumentError:
        known = argparse.Namespace(config=None, resume=False)  # --config without a file: tyro reports it
    file, recipe, options = known.config, MetaConfig(), {}
    if known.resume and known.out and (known.out / RECIPE_FILE).exists():
        recipe, options = read_recipe(known.out), _options_of(known.out)
    if file is not None:
        recipe = MetaConfig.load(file)
    command = tyro.cli(
        MetaTrainCommand,
        default=MetaTrainCommand(recipe=recipe, out=tyro.MISSING, **options),
        args=list(argv),
        prog="celo2 meta-train",
        description=_DESCRIPTION,
        registry=make_registry(commas=False),
    )
    for name, before in options.items():
        if getattr(command, name) != before:
            print(f"{name}: {before} before, {getattr(command, name)} from now on.")
    if file is None or command.recipe.start != recipe.start or file.parent.resolve() == command.out.resolve():
        return command
    return dataclasses.replace(command, recipe=with_start_beside(command.recipe, file))


def _options_of(out: Path) -> dict[str, Any]:
    """Reads the options of the last call of a run, by the names of the command's fields.

    Raises:
        ValueError: The file is damaged.
    """
    saved = read_options(out)
    probe = saved.pop("probe", {})
    options = {"task_set": "probe_set", "tasks": "probe_tasks", "seeds": "probe_seeds"}
    probe = (
        {options[name]: probe[name] for name in options if name in probe} if isinstance(probe, dict) else {}
    )
    defaults = {field.name: field.default for field in dataclasses.fields(MetaTrainCommand)}
    found = {}
    for name, value in {**saved, **probe}.items():
        if name not in defaults:
            continue  # an option of another version
        plain = tuple(value) if isinstance(value, list) else value
        if not _is_like(plain, defaults[name]):
            raise ValueError(
                f"{out / OPTIONS_FILE}: {name} is {value!r:.40}, which has another type than "
                f"{defaults[name]!r}. Remove the file, and give the options that it held again."
            )
        found[name] = plain
    return found


def _is_like(value: Any, default: Any) -> bool:
    """Returns whether a value has its default's type; a tuple's items that of its first, or text."""
    if isinstance(default, tuple) and isinstance(value, tuple):
        return all(_is_like(item, default[0] if default else "") for item in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


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
    """Returns the most devices of a process, up to one per core, that share every family's pairs equally."""
    common = max(math.gcd(*counts) // num_processes, 1)
    return next(count for count in range(min(num_cores(), common), 0, -1) if common % count == 0)
