"""The wheel as a user gets it: weights and data inside, loaded from where it was installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

USE = """
import sys
import celo2
assert "jax" not in sys.modules, "import celo2 loads jax"
assert celo2.__file__.startswith(sys.argv[1]), celo2.__file__
import jax.numpy as jnp
from celo2.tasks.vision.datasets import load_fashion_mnist
for make in (celo2.celo2, celo2.celo2_base):
    tx = make(1e-3)
    params = {"layer": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
    updates, _ = tx.update(params, tx.init(params), params)
    assert jnp.isfinite(updates["layer"]["kernel"]).all()
print(load_fashion_mnist("sample").name)
"""


def _run(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)])
    return next(out.glob("celo2-*.whl"))


def test_wheel_carries_weights_data_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (
        "pretrained/celo2.safetensors",
        "pretrained/celo2-base.safetensors",
        "pretrained/celo2.md",
        "pretrained/known.json",
        "data/fashion_mnist_sample_10k.npz",
        "data/mnist_sample_10k.npz",
        "data/LICENSES.md",
        "evaluate/report/report.html.j2",
        "evaluate/report/report.css",
        "evaluate/report/report.js",
        "evaluate/report/table.html.j2",
        "evaluate/suite/tiny.toml",
        "py.typed",
    ):
        assert f"celo2/{file}" in names
    assert not [name for name in names if name.endswith(".ipynb")]


def test_installed_wheel_optimizes_with_the_shipped_weights(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    _run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    printed = _run([sys.executable, "-c", USE, str(site)], cwd=tmp_path, env=environment)
    assert printed.strip() == "fashion-mnist-sample-10k"
    verify = [sys.executable, "-m", "celo2", "weights", "verify"]
    for name in ("celo2", "celo2-base"):
        assert "OK" in _run([*verify, name], cwd=tmp_path, env=environment)
