"""The PyTorch rule against the reference's recorded runs, the golden runs and the float64 oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from golden import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_rule import GOLDEN_RUNS, make_run, rule_options
from torch_replay import Replay, replay_torch

from celo2.torch import DimensionNumbers
from celo2.torch.kernels import cpu_blocked, dispatch
from celo2.weights import load_checkpoint
from celo2.weights.sources import SHIPPED
from helpers.rule_runs import (
    GOLDEN,
    REFERENCE_RUNS,
    Leaves,
    Run,
    load_reduced,
    load_reference,
    load_run,
    replay_oracle,
)
from helpers.tolerances import relative_error, tolerance
from oracle import rule

Array = NDArray[np.floating]


def assert_agree(actual: list[Leaves], expected: list[Leaves], comparison: str) -> None:
    for t, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        errors = {name: relative_error(ours[name], theirs[name]) for name in theirs}
        assert max(errors.values()) <= tolerance(comparison), f"step {t}: {errors}"


PATHS = ["blocks", "small blocks", "passes", "plain"]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The fast path, the fast path cut finely, whole tensors in passes, and the plain program."""
    if request.param == "small blocks":
        monkeypatch.setattr(cpu_blocked, "BLOCK_SIZE", 12)
    implementation: Any = request.param.removeprefix("small ")
    with dispatch.use(implementation):
        yield request.param


def assert_matches_reference(run: Run) -> None:
    orthogonalized = ", orthogonalized" if run.options["orthogonalize"] else ""
    assert_agree(replay_torch(run, torch.float32), run.updates, f"torch, reference{orthogonalized}")


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_rule_matches_reference_in_float32(shared: Path, name: str) -> None:
    assert_matches_reference(load_reference(shared, name))


@pytest.mark.parametrize("name", reference.RULE_RUNS)
def test_rule_matches_reduced_reference(path: str, name: str) -> None:
    assert_matches_reference(load_reduced(name))


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_rule_matches_oracle_in_float64(shared: Path, name: str) -> None:
    run = load_reference(shared, name)
    assert_agree(replay_torch(run, torch.float64), replay_oracle(run), "torch float64, oracle")


@pytest.mark.parametrize("path", [*PATHS, "numba"], indirect=True)  # the last where it is installed
@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_every_path_matches_golden(path: str, name: str) -> None:
    run = load_run(GOLDEN / f"{name}.npz")
    assert_agree(replay_torch(run, torch.float32), run.updates, "torch, golden")
    assert_agree(replay_torch(run, torch.float64), replay_oracle(run), "torch float64, oracle")


@pytest.mark.parametrize("path", [*PATHS, "numba"], indirect=True)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_path_matches_the_oracle_on_shipped_weights(path: str, name: str) -> None:
    """Most of them are zero; the oracle computes all units and features."""
    weights = load_checkpoint(name)
    run = make_run(dataclasses.asdict(weights.config), seed=0)
    run = dataclasses.replace(run, theta=dict(weights.arrays))
    expected = replay_oracle(run)
    assert_agree(replay_torch(run, torch.float64), expected, "torch float64, oracle")
    assert_agree(replay_torch(run, torch.float32), expected, "torch float32, oracle")


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(options=rule_options(), seed=st.integers(0, 1000))
def test_rule_matches_oracle_for_any_options(options: dict[str, Any], seed: int) -> None:
    assume(options["normalize_input"] or not options["exp_mult"])  # exp of raw features overflows anywhere
    run = make_run(options, seed)
    assert_agree(replay_torch(run, torch.float64), run.updates, "torch float64, oracle")
    assert_agree(replay_torch(run, torch.float32), run.updates, "torch float32, oracle")


OPTIONS: dict[str, Any] = {"ns_iters": 2}
PARSED = rule.make_options(OPTIONS)


class Stored(NamedTuple):
    """A way to store matrices, and where in the stored array each `(reduction, output)` matrix is."""

    shape: tuple[int, ...]
    numbers: DimensionNumbers
    matrices: Callable[[Array], list[Array]]


LAYOUTS = {
    "linear, square": Stored((5, 5), DimensionNumbers(1, 0), lambda x: [x.T]),
    "linear, wide": Stored((4, 7), DimensionNumbers(1, 0), lambda x: [x.T]),
    "linear, tall": Stored((7, 4), DimensionNumbers(1, 0), lambda x: [x.T]),
    "(in, out)": Stored((5, 5), DimensionNumbers(0, 1), lambda x: [x]),
    "convolution": Stored(
        (4, 2, 3, 2), DimensionNumbers((1, 2, 3), 0), lambda x: [x.transpose(1, 2, 3, 0).reshape(12, 4)]
    ),
    "convolution, square": Stored(
        (6, 2, 3), DimensionNumbers((1, 2), 0), lambda x: [x.transpose(1, 2, 0).reshape(6, 6)]
    ),
    "convolution in groups": Stored(
        (6, 2, 3),
        DimensionNumbers((1, 2), 0, 2),
        lambda x: [y.transpose(1, 2, 0).reshape(6, 3) for y in np.split(x, 2)],
    ),
    "transposed convolution": Stored(
        (4, 2, 3, 2), DimensionNumbers((0, 2, 3), 1), lambda x: [x.transpose(0, 2, 3, 1).reshape(24, 2)]
    ),
    "q, k, v": Stored((12, 4), DimensionNumbers(1, 0, 3), lambda x: [y.T for y in np.split(x, 3)]),
    "q, k, v by heads": Stored((12, 4), DimensionNumbers(1, 0, 6), lambda x: [y.T for y in np.split(x, 6)]),
    "q, k, v as (in, out)": Stored((4, 12), DimensionNumbers(0, 1, 3), lambda x: np.split(x, 3, axis=1)),
    "stack": Stored((3, 4, 5), DimensionNumbers(1, 2), list),
    "stack of (out, in)": Stored((3, 5, 5), DimensionNumbers(2, 1), lambda x: [y.T for y in x]),
    "stack of q, k, v": Stored(
        (2, 12, 4), DimensionNumbers(2, 1, 3), lambda x: [y.T for z in x for y in np.split(z, 3)]
    ),
}


@pytest.mark.parametrize("stored", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_step_is_that_of_the_layers_matrices(path: str, stored: Stored) -> None:
    rng = np.random.default_rng(1)
    theta = {n: rng.standard_normal(s).astype(np.float32) for n, s in rule.weight_shapes(PARSED).items()}
    replay = Replay(theta, OPTIONS, {"w": stored.shape}, torch.float64, numbers=stored.numbers)
    param = rng.standard_normal(stored.shape)
    states = [rule.init(matrix.shape, PARSED) for matrix in stored.matrices(param)]
    for _ in range(2):
        grad = rng.standard_normal(stored.shape)
        step = replay.step({"w": grad}, {"w": param})["w"]
        for index, (actual, g, p) in enumerate(zip(*map(stored.matrices, (step, grad, param)), strict=True)):
            expected, states[index] = rule.update(theta, states[index], g, p, PARSED)
            assert relative_error(actual, expected) <= tolerance("torch float64, oracle"), index


def test_storage_matters_without_dimension_numbers() -> None:
    """The reference's convention: a square matrix swaps row and column features when transposed."""
    rng = np.random.default_rng(2)
    theta = {n: rng.standard_normal(s).astype(np.float32) for n, s in rule.weight_shapes(PARSED).items()}
    param, grad = rng.standard_normal((2, 5, 5))
    step, transposed = (
        Replay(theta, OPTIONS, {"w": (5, 5)}, torch.float64).step({"w": g}, {"w": p})["w"]
        for g, p in ((grad, param), (grad.T, param.T))
    )
    assert relative_error(transposed.T, step) > 0.01
