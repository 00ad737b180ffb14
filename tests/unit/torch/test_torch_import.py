"""PyTorch users need no JAX, and a missing PyTorch says what to install."""

from __future__ import annotations

import subprocess
import sys

TRAIN = """
import sys
sys.modules.update(dict.fromkeys(("jax", "jaxlib", "optax"), None))  # importing one of them raises
import torch
from celo2.torch import Celo2, Celo2Base
for make in (Celo2, Celo2Base):
    model = torch.nn.Linear(3, 2)
    optimizer = make(model)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
assert not [name for name in sys.modules if name.startswith("celo2.jax")]
print("trained")
"""

MISSING = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(name)
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
try:
    import celo2.torch
except ImportError as error:
    print(error)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_celo2_torch_trains_where_jax_cannot_be_imported() -> None:
    assert run(TRAIN).strip() == "trained"


def test_a_missing_torch_names_the_extra() -> None:
    assert "pip install 'celo2[torch]'" in run(MISSING)


def test_celo2_alone_loads_no_torch() -> None:
    assert run("import sys, celo2; print('torch' in sys.modules)").strip() == "False"
