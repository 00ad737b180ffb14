"""Coefficients of Newton–Schulz: Polar Express by its definition, one triple or one for each iteration."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from celo2 import RuleConfig, polar_express
from celo2.newton_schulz import coefficient_options, plan_segments
from oracle import polar_express as oracle

MUON = (3.4445, -4.7750, 2.0315)


def compose(polynomials: Any, s: np.ndarray) -> np.ndarray:
    for polynomial in polynomials:
        s = oracle.evaluate(np.array(polynomial), s)
    return s


@pytest.mark.parametrize("count", [1, 4, 5, 8, 12])
def test_polar_express_is_the_papers_composition(count: int) -> None:
    """Up to 2e-9, by which the eighth still differs from the limit that stands for all later ones."""
    np.testing.assert_allclose(polar_express(count), oracle.coefficients(count), rtol=6e-9)


def test_best_quintic_has_four_equal_errors_of_alternating_sign() -> None:
    s = np.linspace(0.1, 1, 100_001)
    error = 1 - oracle.evaluate(oracle.best_quintic(0.1, 1), s)
    extrema = error[np.r_[True, np.diff(np.sign(np.diff(error))) != 0, True]]
    assert len(extrema) == 4
    np.testing.assert_allclose(extrema / extrema[0], [1, -1, 1, -1], atol=1e-6)


@pytest.mark.parametrize(("count", "error"), [(4, 0.6), (5, 0.15), (6, 0.01)])
def test_polar_express_brings_singular_values_near_one(count: int, error: float) -> None:
    """From a thousandth of the norm on, up to the safety factor above it; Muon's five leave more than 0.5."""
    s = np.geomspace(1e-3, 1.01, 10_001)
    assert np.abs(compose(polar_express(count), s) - 1).max() < error
    assert np.abs(compose([MUON] * 5, s) - 1).max() > 0.5


@pytest.mark.parametrize("count", [0, 101])
def test_polar_express_refuses_numbers_that_ns_iters_refuses(count: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 100, got {count}"):
        polar_express(count)


def test_config_repeats_one_triple() -> None:
    assert RuleConfig().ns_polynomials == (MUON,) * 5
    assert RuleConfig(ns_iters=0).ns_polynomials == ()


def test_config_of_each_iteration_survives_json() -> None:
    config = RuleConfig(ns_coeffs=polar_express(4), ns_iters=4)
    assert config.ns_polynomials == polar_express(4)
    read = RuleConfig.from_json(config.to_json())
    assert read == config
    assert hash(read) == hash(config)


def test_options_follow_the_number_of_triples() -> None:
    options = coefficient_options([list(triple) for triple in polar_express(4)])
    assert RuleConfig(**options) == RuleConfig(ns_coeffs=polar_express(4), ns_iters=4)
    assert coefficient_options(MUON) == {"ns_coeffs": MUON}
    assert coefficient_options(None) == {}


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        pytest.param((MUON,) * 4, "for 4 iterations, expected ns_iters=5; give ns_iters=4 too", id="count"),
        pytest.param((1.0, 2.0), "must be three coefficients, or a tuple of three", id="two numbers"),
        pytest.param((MUON, (1.0,)), "got 1 coefficients (1.0,)", id="short triple"),
        pytest.param((MUON, 1.0), "must be a sequence of numbers, got 1.0", id="mixed"),
        pytest.param((), "must be three coefficients", id="none"),
        pytest.param("polar", "must be a sequence of numbers, got 'polar'", id="text"),
        pytest.param(((1.0, 2.0, np.inf),) * 5, "must be finite", id="infinite"),
    ],
)
def test_config_refuses_other_coefficients(coefficients: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RuleConfig(ns_coeffs=coefficients)


@pytest.mark.parametrize(
    ("polynomials", "shape", "gram", "expected"),
    [
        pytest.param([MUON] * 5, (128, 256), True, [3, 2], id="wide"),
        pytest.param([MUON] * 4, (128, 256), True, [3, 1], id="four iterations"),
        pytest.param(polar_express(5), (128, 256), True, [2, 2, 1], id="polar express"),
        pytest.param(polar_express(4), (128, 256), True, [2, 2], id="four of polar express"),
        pytest.param([(60.0, -1.0, 0.1)] * 2, (128, 256), True, [1, 1], id="steep"),
        pytest.param([MUON] * 5, (128, 255), True, [1] * 5, id="nearly square"),
        pytest.param([MUON] * 5, (127, 512), True, [1] * 5, id="small"),
        pytest.param([MUON] * 5, (128, 256), False, [1] * 5, id="low precision"),
        pytest.param([], (128, 256), True, [], id="no iteration"),
    ],
)
def test_segments_restart_before_precision_is_lost(
    polynomials: Any, shape: tuple[int, int], gram: bool, expected: list[int]
) -> None:
    segments = plan_segments(polynomials, *shape, gram=gram)
    assert [len(segment) for segment in segments] == expected
    assert [polynomial for segment in segments for polynomial in segment] == list(polynomials)
