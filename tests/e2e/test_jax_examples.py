"""The JAX examples run and learn."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import quick

pytestmark = pytest.mark.usefixtures("promotion_of_a_users_program")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "jax"
HERE = {  # the numbers of steps that are enough to see the loss fall
    "flax_nnx": 20,
    "flax_linen": 40,
    "equinox_mlp": 40,
    "dicts": 40,
    "schedules_and_clipping": 40,
    "gradient_accumulation": 20,
    "scanned_layers": 40,
    "bfloat16": 20,
}
LINE = re.compile(r"loss ([\d.]+) → ([\d.]+)")


def run_main(example: str, **options: Any) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{example}.py"))["main"](**options)


@pytest.mark.parametrize("example", HERE)
def test_an_example_learns(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_main(example, steps=HERE[example])
    for losses in found if example == "bfloat16" else [found]:
        assert np.mean(losses[-5:]) < 0.6 * losses[0]
    assert LINE.search(capsys.readouterr().out)


def test_a_restored_run_goes_on_to_the_same_numbers() -> None:
    uninterrupted, resumed = run_main("checkpoint_orbax", steps=20)
    assert resumed == uninterrupted
    assert len(resumed) == 20
    assert resumed[-1] < resumed[0] / 2


def test_a_sharded_state_lies_as_its_parameters() -> None:
    """In a process of its own, which has eight devices."""
    command = [sys.executable, str(EXAMPLES / "sharded.py"), "--steps=15"]
    done = subprocess.run(command, env=quick.environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    first, last = map(float, LINE.findall(done.stdout)[0])
    assert last < first / 2
    parameters = re.findall(r"^\w+ \(.*\): (.*)$", done.stdout, re.MULTILINE)
    momenta = re.findall(r"^its momentum: (.*)$", done.stdout, re.MULTILINE)
    assert len(parameters) == 2
    assert all("model" in spec for spec in parameters)
    assert momenta == parameters


def test_every_example_is_run() -> None:
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files == {*HERE, "checkpoint_orbax", "sharded"}
