"""The PyTorch examples run and learn."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "torch"
TRAINERS = ("huggingface_trainer", "lightning_trainer", "accelerate_loop")
NO_NETWORK = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_the_plain_loop_learns_and_shows_the_routing(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)  # of a process that is one of several: two threads would wait for each other
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = runpy.run_path(str(EXAMPLES / "loop.py"))["main"]()
    assert losses[-1] < losses[0] / 2
    assert "output head" in capsys.readouterr().out


@pytest.mark.parametrize("example", TRAINERS)
def test_a_trainer_learns(example: str) -> None:
    """In a process of its own: these libraries set warnings, seeds and loggers for everybody."""
    command = [sys.executable, str(EXAMPLES / f"{example}.py")]
    environment = {**os.environ, **NO_NETWORK}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    first, last = map(float, re.findall(r"loss ([\d.]+) → ([\d.]+)", done.stdout)[0])
    assert last < first / 2
