"""Several processes against one, in PyTorch: the same training, placed state, no gathered matrix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LAYOUTS = {  # of the script's table
    "celo2": ("rows", "columns", "replicas", "rows, columns", "replicated rows"),
    "base": ("rows", "columns", "replicas", "rows, columns", "rows twice"),
    "odd": ("rows", "columns, rows"),
    "raw": ("replicated rows",),
    "parts": ("rows", "columns", "replicas", "rows, columns", "rows twice"),
    "basis": ("rows", "columns, rows", "replicas"),
    "int8": ("rows", "replicas", "replicated rows", "rows twice"),
    "own orthogonalizer": ("columns", "replicated rows"),
}
WAYS = ("ddp", "fsdp", "hsdp", "fsdp and tensor parallel")
MODULES = [
    *(f"{variant} | {way}" for variant in ("celo2", "base", "bfloat16", "parts") for way in WAYS),
    *(f"int8 | {way}" for way in WAYS[:3]),  # tensor parallelism divides rows
]
TOLERANCE = 1e-5  # relative to the largest change: sums are taken in another order (1.9e-6)
TOLERANCE_FLOAT64 = (
    1e-8  # (3.6e-14; modules 5e-10, where the gradient of a key's bias is nothing but rounding)
)
ROUNDING = 2.0**-7  # one unit in the last place of bfloat16
VECTORS = 3000  # elements: all sums of one kind, of all parameters together (2089)


def run(folder: Path, *tasks: str) -> dict[str, Any]:
    script = Path(__file__).with_name("torch_sharded_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *tasks], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {task: json.loads((folder / f"{task.replace(':', '_')}.json").read_text()) for task in tasks}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("layouts"), "layouts:4", "uneven:2", "rows:2")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("modules"), "modules:4", "save:4", "load:2", "load:1")


@pytest.mark.parametrize("case", [f"{variant} | {one}" for variant, own in LAYOUTS.items() for one in own])
def test_bare_parameters_train_as_in_one_process(layouts, case: str) -> None:
    found = layouts["layouts:4"][case]
    limit = TOLERANCE if case.startswith(("celo2", "base")) else TOLERANCE_FLOAT64
    assert max(found["errors"].values()) < limit, found["errors"]
    assert found["state_error"] < limit
    assert found["misplaced"] == []


def check_sums(collectives: dict[str, Any], layout: str, sums: int) -> None:
    """Nothing but sums of vectors, so many a step on each cut axis of the mesh."""
    if layout == "replicas":
        assert collectives == {}
        return
    assert set(collectives) == {"allreduce"}
    size, count = collectives["allreduce"]
    assert size <= VECTORS
    assert count <= sums * 2 * 2  # parameters cut along other axes of the mesh sum apart


@pytest.mark.parametrize("layout", LAYOUTS["base"])
def test_the_base_rule_sums_vectors_and_nothing_else(layouts, layout: str) -> None:
    """Three sums a step on each cut axis of the mesh, however many parameters, and no gather."""
    check_sums(layouts["layouts:4"][f"base | {layout}"]["collectives"], layout, 3)


@pytest.mark.parametrize("layout", LAYOUTS["parts"])
def test_parts_of_the_harness_sum_vectors_and_nothing_else(layouts, layout: str) -> None:
    """Rows, the floor and the projection add one sum each to the rule's three."""
    check_sums(layouts["layouts:4"][f"parts | {layout}"]["collectives"], layout, 6)


@pytest.mark.parametrize("layout", LAYOUTS["celo2"])
def test_newton_schulz_goes_there_and_back_once(layouts, layout: str) -> None:
    """Small matrices travel together; what is replicated travels only back."""
    collectives = layouts["layouts:4"][f"celo2 | {layout}"]["collectives"]
    assert set(collectives) <= {"allreduce", "alltoall_base"}
    assert collectives["alltoall_base"][1] == (1 if layout == "replicas" else 2)


def test_a_nan_in_one_shard_leaves_the_parameter_out_in_all_processes(layouts) -> None:
    for found in layouts["uneven:2"]["every"]:
        assert found["moved"] == [True, False, False]
        assert found["counted"] == 1


def test_parameters_without_a_gradient_have_the_keys_of_others(layouts) -> None:
    """A distributed checkpoint must have the same keys whatever had a gradient, and where."""
    for found in layouts["uneven:2"]["every"]:
        assert found["keys"] == layouts["uneven:2"]["every"][0]["keys"]
        assert all("step" in keys for keys in found["keys"])
        assert "exp_avg" in found["keys"][2]


def test_momenta_of_one_byte_refuse_rows_that_processes_share(layouts) -> None:
    said = layouts["rows:2"]["said"]
    assert set(said) == {"(6, 4) along 1", "(2, 4, 6) along 2", "(8,) along 0"}
    for message in said.values():
        assert message.startswith("state_dtype=torch.int8 needs whole rows in one process")
        assert "use torch.bfloat16" in message


@pytest.mark.parametrize("case", MODULES)
def test_modules_train_as_in_one_process(modules, case: str) -> None:
    found, variant = modules["modules:4"][case], case.split(" | ")[0]
    assert max(found["errors"].values()) < (ROUNDING if variant == "bfloat16" else TOLERANCE_FLOAT64)
    assert found["state_error"] < (ROUNDING if variant == "bfloat16" else TOLERANCE_FLOAT64)
    assert found["misplaced"] == []
    assert ("torch.bfloat16" in found["dtypes"]) == (variant in ("bfloat16", "int8"))
    assert ("torch.int8" in found["dtypes"]) == (variant == "int8")


@pytest.mark.parametrize("flat", ["flat: False", "flat: True", "with parts", "int8"])
@pytest.mark.parametrize("processes", ["load:2", "load:1"])
def test_a_distributed_checkpoint_of_four_continues_on_fewer(modules, processes: str, flat: str) -> None:
    found = modules[processes][flat]
    assert max(found["errors"].values()) < TOLERANCE_FLOAT64
    assert found["state_error"] < TOLERANCE_FLOAT64
    assert found["misplaced"] == []
    assert found["lr"] == 0.01
