"""The PyTorch examples run and learn."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def train_gpt() -> Iterator[Callable[..., dict[str, Any]]]:
    """The script's `main`, with `--tiny` and more arguments."""
    torch.set_num_threads(1)
    main = runpy.run_path(str(EXAMPLES / "train_gpt.py"))["main"]
    with torch.random.fork_rng():
        yield lambda *arguments: main(["--tiny", "--device=cpu", *map(str, arguments)])


@pytest.mark.parametrize("optimizer", ["celo2", "adamw"])
def test_the_gpt_learns(train_gpt, optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = train_gpt("--optimizer", optimizer, "--lr", 3e-3, "--clip", 1.0, "--accumulate", 2)
    assert found["train"][-1] < 0.8 * found["train"][0]
    assert found["valid"][-1] < 0.8 * found["train"][0]
    assert "validation loss" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["celo2", "adamw"])
def test_a_resumed_gpt_goes_on_to_the_same_losses(train_gpt, optimizer: str, tmp_path: Path) -> None:
    checkpoint = "--optimizer", optimizer, "--checkpoint", tmp_path / "gpt.pt"
    uninterrupted = train_gpt("--optimizer", optimizer)
    train_gpt(*checkpoint, "--stop-after", 15)
    resumed = train_gpt(*checkpoint, "--resume")
    assert resumed["train"] == uninterrupted["train"][15:]
    assert resumed["valid"] == uninterrupted["valid"][1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--resume"], "needs --checkpoint"), (["--width", "30", "--heads", "4"], "a multiple of --heads")],
    ids=["nothing to resume", "odd width"],
)
def test_the_gpt_refuses_what_cannot_be(train_gpt, arguments, message, capsys) -> None:
    with pytest.raises(SystemExit):
        train_gpt(*arguments)
    assert message in capsys.readouterr().err


def test_every_torch_example_is_run() -> None:
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files == {"loop", "train_gpt", *TRAINERS}
