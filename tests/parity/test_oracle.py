"""The float64 oracles against the recorded runs of the reference implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.rule_runs import GOLDEN, REFERENCE_RUNS, load_run, replay_oracle
from helpers.tolerances import relative_error, tolerance
from oracle import pes, rule

GOLDEN_RUNS = sorted(path.stem for path in GOLDEN.glob("*.npz"))
PES_RUNS = ("many_resets", "no_resets", "sign", "with_resets")


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_oracle_matches_reference(shared: Path, name: str) -> None:
    run = load_run(shared / "conformance" / "rule" / f"{name}.npz")
    orthogonalized = ", orthogonalized" if run.options["orthogonalize"] else ""
    limit = tolerance(f"oracle, reference{orthogonalized}")
    for t, (actual, expected) in enumerate(zip(replay_oracle(run), run.updates, strict=True)):
        errors = {leaf: relative_error(actual[leaf], expected[leaf]) for leaf in expected}
        assert max(errors.values()) <= limit, f"step {t}: {errors}"


def test_reference_runs_are_all_listed(shared: Path) -> None:
    assert {path.stem for path in (shared / "conformance" / "rule").glob("*.npz")} == set(REFERENCE_RUNS)


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_oracle_matches_golden(name: str) -> None:
    run = load_run(GOLDEN / f"{name}.npz")
    for t, (actual, expected) in enumerate(zip(replay_oracle(run), run.updates, strict=True)):
        errors = {leaf: relative_error(actual[leaf], expected[leaf]) for leaf in expected}
        assert max(errors.values()) <= tolerance("oracle, golden"), f"step {t}: {errors}"


def test_golden_covers_ranks_zero_to_five() -> None:
    assert len(GOLDEN_RUNS) >= 5
    for name in GOLDEN_RUNS:
        ranks = {leaf.ndim for leaf in load_run(GOLDEN / f"{name}.npz").params[0].values()}
        assert ranks == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("name", PES_RUNS)
def test_pes_oracle_matches_reference(shared: Path, name: str) -> None:
    with np.load(shared / "conformance" / "pes" / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)

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
