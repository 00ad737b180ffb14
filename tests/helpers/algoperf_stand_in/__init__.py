"""A small stand-in of AlgoPerf's API, written from its public description, to try submissions against.

`install()` puts it where a submission imports it from: `algoperf.spec`, `algoperf.jax_sharding_utils` and
`algoperf.pytorch_utils`. Nothing here loads a framework by itself, or anything of `celo2`: the JAX part also
runs under the versions that AlgoPerf pins (`run_jax.py`).

The workloads keep the habits of the real ones that a submission can stumble over: a JAX tree of types has
lower-case names, the same layer names occur at several depths, the output layer is named by its top-level
module, by its parameter, not at all, or the question raises an error; batches have masks or none.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

PARTS = {
    "jax": ("spec", "jax_sharding_utils"),
    "pytorch": ("spec", "pytorch_utils"),
}


@contextmanager
def install(framework: str) -> Iterator[None]:
    """Provides `algoperf` to imports, for "jax" or "pytorch"; removes it afterwards."""
    package = ModuleType("algoperf")
    package.__path__ = []
    modules = {"algoperf": package}
    for part in PARTS[framework]:
        module = importlib.import_module(f"{__name__}.{part}")
        setattr(package, part, module)
        modules[f"algoperf.{part}"] = module
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def load_submission(folder: Path) -> Any:
    """Imports the `submission.py` of a folder under a name of its own; `algoperf` must be installed."""
    spec = importlib.util.spec_from_file_location(f"submission_{folder.name}", folder / "submission.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
