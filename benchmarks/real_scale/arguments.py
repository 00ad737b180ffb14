"""The command line of all scripts in this folder."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from celo2.tasks.base import SIZES, Size

if TYPE_CHECKING:
    from experiment import Experiment

CHECKPOINT_MINUTES = 10.0
TFLOPS = 100.0  # per device, assumed and not measured

Setting = tuple[float, float]  # learning rate, weight decay


class Arguments(NamedTuple):
    """Parsed arguments; see the help texts in `parse`."""

    data: Path | None
    out: Path
    size: Size
    dry_run: bool
    optimizers: tuple[str, ...]
    stage: Literal["all", "tune", "final"]
    set: Mapping[str, Setting]
    seeds: int
    steps: int
    rows: int
    bfloat16: bool
    devices: int
    checkpoint_minutes: float
    step_seconds: float
    tflops: float


_DESCRIPTION = """\
{title}

Trains every optimizer at all settings of its grid with one seed, then each one's best setting with other
seeds, and writes a table with the figures of the texts beside ours. The same command goes on where it was
stopped: finished runs are kept, and a run that was stopped goes on from its last checkpoint.

examples:
  python {script} --dry-run                                 what it needs, and how long it takes
  python {script} --size tiny --out runs/tiny               the same in minutes on a CPU, on a stand-in
  python {script} --data /data --out runs/real              the published setting
  python {script} --data /data --out runs/real --optimizers celo2,adamw
  python {script} --data /data --out runs/one --optimizers adamw --set adamw=0.003 --seeds 1

data: {data}
"""


def parse(experiment: Experiment, argv: Sequence[str]) -> Arguments:
    """Parses the arguments of a script; exits the process for invalid ones and for --help."""
    script = _script(experiment)
    parser = argparse.ArgumentParser(
        prog=script,
        description=_DESCRIPTION.format(
            title=experiment.title, script=script, data=experiment.need.describe()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder that holds the data's folder; default: $CELO2_DATA, ~/.cache/celo2")
    add(
        "--out", type=Path, default=Path("runs") / experiment.task, help="folder of the runs and of the table"
    )
    add(
        "--size",
        choices=SIZES,
        default="full",
        help="full: as published; smaller ones use stand-ins for data",
    )
    add("--dry-run", action="store_true", help="check the data, print memory, runs and hours; train nothing")
    add("--optimizers", type=_names, default=(), help=f"default: {','.join(experiment.grids)}; or celo2:PATH")
    add(
        "--stage",
        choices=("all", "tune", "final"),
        default="all",
        help="the grids, the best settings, or both",
    )
    add("--set", type=_setting, nargs="+", default=[], metavar="NAME=RATE[,DECAY]", help="do not tune these")
    add("--seeds", type=_count, default=0, help="seeds of the best setting; default 3, for smaller sizes 2")
    add(
        "--steps",
        type=_count,
        default=0,
        help=f"length of a run; default {experiment.steps:,}, or the size's",
    )
    add(
        "--rows",
        type=_count,
        default=0,
        help="examples of a batch in memory at once, a divisor of the batch; default: the task's",
    )
    add("--bfloat16", action="store_true", help="round the operands of matrix products to bfloat16")
    add("--devices", type=_count, default=0, help="devices to use, each with a run of its own; default: all")
    add("--checkpoint-minutes", type=float, default=CHECKPOINT_MINUTES, help="least time between checkpoints")
    add("--step-seconds", type=float, default=0.0, help="a step's time that you measured, for --dry-run")
    add(
        "--tflops", type=float, default=TFLOPS, help="assumed speed of a device, for --dry-run without a time"
    )
    parsed = vars(parser.parse_args(argv))
    if repeated := {name for name, _ in parsed["set"] if [n for n, _ in parsed["set"]].count(name) > 1}:
        parser.error(f"--set names {', '.join(repeated)} twice.")
    parsed["set"] = dict(parsed["set"])
    return Arguments(**parsed)


def command_of(experiment: Experiment, argv: Sequence[str], *, stage: str) -> str:
    """Returns the command line with these arguments and another stage."""
    others = re.sub(r" --sta\w*[ =](all|tune|final)(?= |$)", "", f" {shlex.join(argv)}")
    return f"python {_script(experiment)}{others} --stage {stage}"


def _script(experiment: Experiment) -> str:
    return f"benchmarks/real_scale/{experiment.task.replace('-', '_')}.py"


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _count(text: str) -> int:
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text!r}.")
    return count


def _setting(text: str) -> tuple[str, Setting]:
    name, _, numbers = text.rpartition("=")
    rate = decay = 0.0
    try:
        rate, decay = (*map(float, numbers.split(",")), 0.0)[:2]
    except ValueError:
        name = ""
    if not name or not rate > 0 or decay < 0:
        raise argparse.ArgumentTypeError(f"expected NAME=RATE or NAME=RATE,DECAY, got {text!r}.")
    return name, (rate, decay)
