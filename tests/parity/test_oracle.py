"""The float64 oracles against the recorded runs of the reference implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden import reference

from helpers.rule_runs import (
    GOLDEN,
    REFERENCE_RUNS,
    Run,
    load_reduced,
    load_reference,
    load_run,
    replay_oracle,
)
from helpers.tolerances import relative_error, tolerance
from oracle import pes, rule

GOLDEN_RUNS = sorted(path.stem for path in GOLDEN.glob("*.npz") if path.name not in reference.FILES)
PES_RUNS = ("many_resets", "no_resets", "sign", "with_resets")


def assert_oracle_agrees(run: Run, comparison: str) -> None:
    """Every leaf of every step is within the tolerance of this comparison."""
    for t, (actual, expected) in enumerate(zip(replay_oracle(run), run.updates, strict=True)):
        errors = {leaf: relative_error(actual[leaf], expected[leaf]) for leaf in expected}
        assert max(errors.values()) <= tolerance(comparison), f"step {t}: {errors}"


def reference_comparison(run: Run) -> str:
    return "oracle, reference" + (", orthogonalized" if run.options["orthogonalize"] else "")


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_oracle_matches_reference(shared: Path, name: str) -> None:
    run = load_reference(shared, name)
    assert_oracle_agrees(run, reference_comparison(run))


@pytest.mark.parametrize("name", reference.RULE_RUNS)
def test_oracle_matches_reduced_reference(name: str) -> None:
    run = load_reduced(name)
    assert_oracle_agrees(run, reference_comparison(run))


def test_reduced_reference_covers_ranks_zero_to_four() -> None:
    params = [load_reduced(name).params[0] for name in reference.RULE_RUNS]
    assert {leaf.ndim for leaves in params for leaf in leaves.values()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", reference.FILES)
def test_reduced_reference_is_that_of_the_recorded_runs(shared: Path, name: str) -> None:
    expected = reference.FILES[name](shared / "conformance")
    found = reference.read(GOLDEN / name)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_reference_runs_are_all_listed(shared: Path) -> None:
    assert {path.stem for path in (shared / "conformance" / "rule").glob("*.npz")} == set(REFERENCE_RUNS)


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_oracle_matches_golden(name: str) -> None:
    assert_oracle_agrees(load_run(GOLDEN / f"{name}.npz"), "oracle, golden")


def test_golden_covers_ranks_zero_to_five() -> None:
    assert len(GOLDEN_RUNS) >= 5
    for name in GOLDEN_RUNS:
        ranks = {leaf.ndim for leaf in load_run(GOLDEN / f"{name}.npz").params[0].values()}
        assert ranks == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("name", PES_RUNS)
def test_pes_oracle_matches_reference(shared: Path, name: str) -> None:
    assert_pes_oracle_agrees(reference.read(shared / "conformance" / "pes" / f"{name}.npz"))


def test_pes_oracle_matches_shipped_reference() -> None:
    assert_pes_oracle_agrees(reference.read(GOLDEN / reference.PES_FILE))


def assert_pes_oracle_agrees(arrays: dict[str, np.ndarray]) -> None:
    """The oracle's estimate of recorded losses is the recorded one."""

    def tree(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    estimate = pes.estimate(
        arrays["loss_pos"],
        arrays["loss_neg"],
        arrays["is_done"],
        arrays["mask"],
        tree("perturbation/"),
        tree("accumulator_in/"),
        float(arrays["sigma"]),
        float(arrays["sign_delta_loss_scalar"]),
    )
    limit = tolerance("pes oracle, reference")
    for actual, expected in (
        (estimate.gradient, tree("gradient/")),
        (estimate.accumulator, tree("accumulator_out/")),
    ):
        assert actual.keys() == expected.keys()
        for leaf in expected:
            assert relative_error(actual[leaf], expected[leaf]) <= limit, leaf
    assert relative_error(estimate.mean_loss, arrays["mean_loss"]) <= limit


def test_oracle_direction_is_unit_rms_and_orthogonal() -> None:
    """Properties the specification names, checked on the oracle without any recorded run."""
    rng = np.random.default_rng(0)
    options = rule.Options(ns_iters=12, ns_coeffs=(1.5, -0.5, 0.0))  # a convergent polynomial
    theta = {name: rng.standard_normal(shape) for name, shape in rule.weight_shapes(options).items()}
    grad, param = rng.standard_normal((2, 4, 9))
    step, state = rule.update(theta, rule.init(grad.shape, options), grad, param, options)
    np.testing.assert_allclose(np.mean(step**2), 1.0, rtol=1e-6)
    np.testing.assert_allclose(step @ step.T, 9 * np.eye(4), atol=0.1)
    np.testing.assert_array_equal(state.momentum[0], (1 - 0.9) * grad)
