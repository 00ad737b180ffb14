"""The PyTorch examples run and learn."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_plain_loop_learns_and_shows_the_routing(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)  # of a process that is one of several: two threads would wait for each other
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = runpy.run_path(str(EXAMPLES / "torch_loop.py"))["main"]()
    assert losses[-1] < losses[0] / 2
    assert "output head" in capsys.readouterr().out
