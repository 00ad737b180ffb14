"""Eight devices against one: the same updates, state beside its parameter, no gathered matrix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import quick

LAYOUTS = ("data", "tensor", "fully-sharded")
VARIANTS = ("celo2", "celo2-base", "harness")
TOLERANCE = 1e-5  # relative to the largest entry: sums are taken in another order
ROUNDING = 2.0**-7  # one unit in the last place of bfloat16
VECTOR_SUMS = 8 * 512  # elements: row, column and channel sums of the largest leaf, from each device
LARGEST_MATRIX = 256 * 512  # elements; the stack of four matrices has as many in all


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    script = Path(__file__).with_name("sharded_run.py")
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=quick.environment(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sharded_steps_equal_those_of_one_device(found, variant: str, layout: str) -> None:
    case = found[f"{variant} {layout}"]
    assert case["update_error"] < TOLERANCE
    assert case["state_error"] < TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_state_and_updates_inherit_the_parameters_sharding(found, variant: str, layout: str) -> None:
    case = found[f"{variant} {layout}"]
    assert case["state_inherits"]
    assert case["updates_inherit"]


@pytest.mark.parametrize("variant", ["bfloat16", "whole", "explicit"])
def test_a_rounded_state_is_sharded_too(found, variant: str) -> None:
    """The random bits do not depend on the sharding; a sum's last digit may turn a rounding."""
    case = found[f"{variant} fully-sharded"]
    assert case["state_inherits"]
    assert case["updates_inherit"]
    assert case["state_error"] < ROUNDING
    assert case["update_error"] < ROUNDING


def test_the_harness_is_sharded_on_explicit_axes_too(found) -> None:
    case = found["explicit-harness fully-sharded"]
    assert case["state_inherits"]
    assert case["updates_inherit"]
    assert case["update_error"] < TOLERANCE
    assert case["state_error"] < TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["celo2-base", "harness"])
def test_rule_and_harness_without_newton_schulz_gather_no_matrix(found, variant: str, layout: str) -> None:
    collectives = found[f"{variant} {layout}"]["collectives"]
    assert max(collectives.values(), default=0) <= VECTOR_SUMS
    if layout != "data":
        assert collectives  # the sums do cross the devices


@pytest.mark.parametrize("layout", LAYOUTS)
def test_newton_schulz_gathers_at_most_one_matrix_at_a_time(found, layout: str) -> None:
    assert max(found[f"celo2 {layout}"]["collectives"].values(), default=0) <= LARGEST_MATRIX
