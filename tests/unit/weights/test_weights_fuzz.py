"""Damaged weight files: none of ours loads as anything but what was written."""

from __future__ import annotations

import collections
import runpy
from pathlib import Path

import pytest

FUZZER = runpy.run_path(str(Path(__file__).resolve().parents[3] / "tools" / "fuzz_weights.py"))
MUTANTS = 2_000
OURS = ("Celo2, safetensors", "AdaFac-MLP, safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return FUZZER["make_files"](tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", OURS)
def test_no_mutant_of_ours_loads_as_something_else(files, kind):
    counts = FUZZER["fuzz"](files[kind], MUTANTS)
    total = sum(counts.values(), collections.Counter())
    assert total["loaded as something else"] == 0
    assert total["refused"] > 0.9 * total.total()
    assert counts["change_a_number"]["refused"] > MUTANTS / len(counts) - 2  # each is another number


@pytest.mark.parametrize("kind", ["theta.state", "the port's safetensors"])
def test_a_mutant_of_a_file_without_a_digest_is_refused_or_loads(files, kind):
    """The formats have no place for a digest: what the fuzzer counts as something else are their numbers."""
    total = sum(FUZZER["fuzz"](files[kind], MUTANTS).values(), collections.Counter())
    assert total["refused"] > 0.5 * MUTANTS
    assert total["loaded as something else"] > 0  # so that the fuzzer can tell
