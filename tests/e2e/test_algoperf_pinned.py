"""The JAX submissions run under the versions that AlgoPerf pins, in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers import quick

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "algoperf"
RUNNER = ROOT / "tests" / "helpers" / "algoperf_stand_in" / "run_jax.py"
PYTHON = Path(os.environ.get("CELO2_ALGOPERF_PYTHON", ROOT / ".venv-algoperf" / "bin" / "python"))
HOW = (
    "AlgoPerf's pinned versions are not installed; run `make algoperf`, or give the Python of an environment "
    "that has them as CELO2_ALGOPERF_PYTHON"
)


@pytest.mark.skipif(not PYTHON.exists(), reason=HOW)
def test_the_submissions_train_under_the_pinned_versions() -> None:
    folders = sorted((FOLDER / "submissions" / "self_tuning").glob("*_jax"))
    flags = f"{quick.XLA_FLAGS} --xla_force_host_platform_device_count=2"
    environment = {**quick.environment(), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONPATH", None)
    command = [str(PYTHON), str(RUNNER), *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    lines = (FOLDER / "requirements-pinned.txt").read_text("utf-8").splitlines()
    assert found["versions"] == dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(found["losses"]) == 2 * len(folders)
    for name, losses in found["losses"].items():
        assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4]), name
