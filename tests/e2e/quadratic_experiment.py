"""An experiment of benchmarks/real_scale that trains in seconds: a quadratic of 64 × 32, size tiny only.

A script of its own, since a process that is killed cannot be the test's; `test_real_scale.py` runs it. That
folder must be on the path where an experiment is made. `python quadratic_experiment.py OUT…` trains one run
for each folder.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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


def make_experiment() -> Any:
    """Declares it, and registers its task."""
    if NAME not in TASKS:
        register_task(NAME, make)
    shared, grids, plan = map(importlib.import_module, ("experiment", "grids", "plan"))
    return shared.Experiment(
        task=NAME,
        title="A quadratic",
        steps=100,
        grids={"adamw": grids.Grid((1e-3, 1e-2), (0.0,), "ours")},
        figures=(),
        measure="loss",
        need=plan.Need("nothing", "nothing", num_bytes=0, on_device=0, check_content=check),
        differences=(),
    )


def kill_before(number: int) -> None:
    """Ends the process, as `kill -9` does, when it is about to write its checkpoint of this number."""
    save, calls = RunCheckpoint.save, []

    def count(self: RunCheckpoint, history: Mapping[str, np.ndarray], carry: Any) -> None:
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, history, carry)

    RunCheckpoint.save = count


if __name__ == "__main__":
    if KILL in os.environ:
        kill_before(int(os.environ[KILL]))
    main, experiment = importlib.import_module("experiment").main, make_experiment()
    sys.exit(max(main(experiment, ["--out", out, *OPTIONS]) for out in sys.argv[1:]))
