"""An experiment of benchmarks/real_scale that trains in seconds: a quadratic of 64 × 32, size tiny only.

A script of its own, since a process that is killed cannot be the test's; `test_real_scale.py` runs it, with
that folder on the path. `python quadratic_experiment.py OUT…` trains one run for each folder.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from experiment import Experiment, Grid, main
from plan import Need

from celo2.tasks import Task, register_task
from celo2.tasks.quadratic import make_quadratic
from celo2.tasks.registry import TASKS
from celo2.training.checkpoint import RunCheckpoint

KILL = "QUADRATIC_KILL"  # the variable that says before which checkpoint the process is killed
NAME = "sized-quadratic"
SETTING = {"--size": "tiny", "--optimizers": "adamw", "--set": "adamw=0.01", "--seeds": "1"}
OPTIONS = [word for pair in {**SETTING, "--checkpoint-minutes": "0"}.items() for word in pair]


def make(size: str = "full") -> Task:
    """The same quadratic in each size."""
    return make_quadratic()


def check(folder: Path) -> None:
    """Accepts any folder."""


EXPERIMENT = Experiment(
    task=NAME,
    title="A quadratic",
    steps=100,
    grids={"adamw": Grid((1e-3, 1e-2), (0.0,), "ours")},
    figures=(),
    measure="loss",
    need=Need("nothing", "nothing", num_bytes=0, on_device=0, check_content=check),
    differences=(),
)


def kill_before(number: int) -> None:
    """Ends the process, as `kill -9` does, when it is about to write its checkpoint of this number."""
    save, calls = RunCheckpoint.save, []

    def count(self, *arguments) -> None:
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, *arguments)

    RunCheckpoint.save = count


if NAME not in TASKS:
    register_task(NAME, make)
if __name__ == "__main__":
    if KILL in os.environ:
        kill_before(int(os.environ[KILL]))
    sys.exit(max(main(EXPERIMENT, ["--out", out, *OPTIONS]) for out in sys.argv[1:]))
