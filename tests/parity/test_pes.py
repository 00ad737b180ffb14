"""The PES estimate against the recorded runs of the reference, and against the oracle."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from golden import reference

from celo2.meta import pes
from helpers.rule_runs import GOLDEN
from helpers.tolerances import relative_error, tolerance
from oracle import pes as oracle

RUNS = ("many_resets", "no_resets", "sign", "with_resets")


def _tree(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _estimate(arrays: dict[str, np.ndarray]) -> pes.Estimate:
    def on_device(tree: dict[str, np.ndarray]) -> dict:
        return {name: jnp.asarray(array) for name, array in tree.items()}

    mask = arrays["mask"].astype(np.float32)
    return pes.estimate(
        jnp.asarray(arrays["loss_pos"]),
        jnp.asarray(arrays["loss_neg"]),
        jnp.asarray(arrays["is_done"]),
        on_device(_tree(arrays, "perturbation/")),
        on_device(_tree(arrays, "accumulator_in/")),
        sigma=float(arrays["sigma"]),
        weight=jnp.asarray(mask / mask.sum(axis=0, keepdims=True)),
        sign_scale=float(arrays["sign_delta_loss_scalar"]),
    )


@pytest.mark.parametrize("name", RUNS)
def test_estimate_matches_reference(shared: Path, name: str) -> None:
    _assert_agrees(reference.read(shared / "conformance" / "pes" / f"{name}.npz"))


def test_estimate_matches_shipped_reference() -> None:
    _assert_agrees(reference.read(GOLDEN / reference.PES_FILE))


def _assert_agrees(arrays: dict[str, np.ndarray]) -> None:
    """Our estimate of recorded losses is the recorded one."""
    found = _estimate(arrays)
    limit = tolerance("pes, reference")
    for kind, tree in (("gradient", found.gradient), ("accumulator_out", found.accumulator)):
        expected = _tree(arrays, f"{kind}/")
        assert expected
        for leaf, array in expected.items():
            assert relative_error(tree[leaf], array) <= limit, f"{kind}/{leaf}"
    assert float(found.mean_loss) == pytest.approx(float(arrays["mean_loss"]), rel=limit)


def test_estimate_matches_oracle() -> None:
    rng = np.random.default_rng(0)
    length, pairs, sigma = 12, 5, 0.1
    arrays = {
        "loss_pos": rng.uniform(size=(length, pairs)).astype(np.float32),
        "loss_neg": rng.uniform(size=(length, pairs)).astype(np.float32),
        "is_done": rng.uniform(size=(length, pairs)) < 0.1,
        "mask": rng.uniform(size=(length, pairs)) < 0.9,
        "sigma": np.float32(sigma),
        "sign_delta_loss_scalar": np.float32(0.0),
        "perturbation/w": rng.normal(size=(pairs, 3, 2)).astype(np.float32) * np.float32(sigma),
        "accumulator_in/w": rng.normal(size=(pairs, 3, 2)).astype(np.float32) * np.float32(sigma),
    }
    assert arrays["is_done"].any(axis=0).any()
    assert not arrays["is_done"].any(axis=0).all()
    found = _estimate(arrays)
    expected = oracle.estimate(
        arrays["loss_pos"],
        arrays["loss_neg"],
        arrays["is_done"],
        arrays["mask"],
        _tree(arrays, "perturbation/"),
        _tree(arrays, "accumulator_in/"),
        float(arrays["sigma"]),
    )
    limit = tolerance("pes, reference")
    assert relative_error(found.gradient["w"], expected.gradient["w"]) <= limit
    assert relative_error(found.accumulator["w"], expected.accumulator["w"]) <= limit
    assert float(found.mean_loss) == pytest.approx(expected.mean_loss, rel=limit)
