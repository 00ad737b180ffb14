"""The statistics of a suite, against examples worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.evaluate.analysis import stats

INF, NAN = math.inf, math.nan


def test_final_loss_of_a_diverged_run_is_infinite():
    curves = np.array([[3.0, 1.0], [3.0, 2.0], [3.0, NAN]])
    assert_array_equal(stats.final_losses(curves, np.array([False, True, False])), [1.0, INF, INF])


def test_lowest_skips_what_is_not_finite():
    assert_array_equal(stats.lowest(np.array([[3.0, 1.0, NAN], [NAN, INF, NAN]])), [1.0, INF])


@pytest.mark.parametrize(
    ("target", "steps"),
    [(4.0, 10), (3.0, 20), (1.5, 30), (0.5, INF)],
    ids=["first", "equal", "last", "never"],
)
def test_steps_to_target_is_the_first_point_at_or_below_it(target, steps):
    assert stats.steps_to_target(np.array([10, 20, 30]), np.array([4.0, 3.0, 1.0]), target) == steps


def test_nan_reaches_no_target():
    assert stats.steps_to_target(np.array([10, 20]), np.array([NAN, NAN]), 1.0) == INF


def test_speed_up_is_the_whole_run_over_the_steps_to_the_target():
    steps, losses = np.array([25, 50, 100]), np.array([3.0, 2.0, 1.0])
    assert stats.speed_up(steps, losses, 2.0, 100) == 2.0
    assert stats.speed_up(steps, losses, 0.5, 100) == 0.0


def test_scores_are_ratios_to_the_baseline_and_zero_where_a_run_diverged():
    scores = stats.normalized_scores(np.array([0.5, 1.0, 2.0, INF, NAN, 0.0]), 1.0)
    assert_array_equal(scores, [2.0, 1.0, 0.5, 0.0, 0.0, INF])
    assert_array_equal(stats.normalized_scores(np.array([0.0, 1.0]), 0.0), [1.0, 0.0])


def test_scores_of_returns_are_inverse_ratios():
    scores = stats.normalized_scores(np.array([-30.0, -10.0, 5.0, INF]), -20.0, returns=True)
    assert_array_equal(scores, [1.5, 0.5, 0.0, 0.0])


@pytest.mark.parametrize(
    ("losses", "baseline", "returns"),
    [
        ([-1.0], 1.0, False),
        ([1.0], -1.0, False),
        ([1.0], INF, False),
        ([-1.0], 0.0, True),
        ([-1.0], 2.0, True),
    ],
    ids=["negative loss", "negative baseline", "diverged baseline", "no return", "negative return"],
)
def test_scores_refuse_ratios_without_a_meaning(losses, baseline, returns):
    with pytest.raises(ValueError, match="must"):
        stats.normalized_scores(np.array(losses), baseline, returns=returns)


def test_interquartile_mean_drops_the_lowest_and_the_highest_quarter():
    assert stats.interquartile_mean(np.array([100.0, 1.0, 3.0, 2.0, 5.0, 4.0, 0.0, -90.0])) == 2.5
    assert_array_equal(
        stats.interquartile_mean(np.array([[0.0, 1.0, 2.0, INF], [1.0, 1.0, 3.0, 4.0]])), [1.5, 2.0]
    )


def _mean(scores):
    return scores.mean(-1)


def test_bootstrap_resamples_seeds_within_their_task():
    """Two seeds give their means 0, ½ and 1 with chances ¼, ½, ¼; those of another task stay in theirs."""
    tasks = [np.array([0.0, 1.0]), np.array([10.0, 10.0])]
    assert stats.bootstrap_interval(tasks, _mean, level=0.95) == (5.0, 5.5)
    assert stats.bootstrap_interval(tasks, _mean, level=0.3) == (5.25, 5.25)


def test_bootstrap_over_one_seed_is_a_point_and_over_tasks_is_not():
    tasks = [np.array([1.0]), np.array([3.0])]
    assert stats.bootstrap_interval(tasks, _mean) == (2.0, 2.0)
    assert stats.bootstrap_interval(tasks, _mean, tasks=True) == (1.0, 3.0)


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    scores = np.random.default_rng(0).normal(size=400)
    low, high = stats.bootstrap_interval([scores], _mean)
    error = scores.std() / 20  # of the mean of 400
    assert_allclose([low, high], scores.mean() + error * np.array([-1.96, 1.96]), atol=0.2 * error)


def test_bootstrap_takes_tasks_with_different_numbers_of_seeds():
    tasks = [np.array([1.0, 1.0, 1.0]), np.array([2.0])]
    assert stats.bootstrap_interval(tasks, _mean) == (1.25, 1.25)
    assert stats.bootstrap_interval(tasks, _mean, tasks=True) == (1.0, 2.0)


def test_bootstrap_keeps_infinite_scores():
    assert stats.bootstrap_interval([np.array([1.0, INF])], _mean) == (1.0, INF)


def test_probability_of_improvement_counts_pairs_of_seeds():
    """Of the first task's pairs 3 of 4 are lower; of the second's one is lower and two are equal."""
    ours = [np.array([1.0, 3.0]), np.array([2.0, INF])]
    theirs = [np.array([2.0, 4.0]), np.array([2.0, INF])]
    assert stats.probability_of_improvement(ours[:1], theirs[:1]) == 0.75
    assert stats.probability_of_improvement(ours[1:], theirs[1:]) == 0.5
    assert stats.probability_of_improvement(ours, theirs) == 0.625


def test_performance_profile_is_the_share_of_runs_at_or_above():
    scores = [np.array([0.0, 1.0]), np.array([2.0])]
    assert_array_equal(
        stats.performance_profile(scores, np.array([0.0, 1.0, 1.5, 3.0])), [1.0, 0.75, 0.5, 0.0]
    )


def test_mean_ranks_share_ties_and_leave_out_what_was_not_run():
    losses = np.array([[1.0, 2.0, 3.0], [INF, 1.0, INF], [2.0, 1.0, NAN]])
    assert_allclose(stats.mean_ranks(losses), [(1 + 2.5 + 2) / 3, (2 + 1 + 1) / 3, (3 + 2.5) / 2])


def test_rate_sensitivity_interpolates_in_the_logarithm_of_the_rate():
    """Below: 1.05 half a decade off, 1.1 a decade off; above: 1.1 a quarter decade off, 1.2 half a decade."""
    found = stats.rate_sensitivity(np.array([0.01, 0.1, 1.0]), np.array([1.1, 1.0, 1.4]))
    assert_allclose(found.half_decade, 1.2)
    assert_allclose(found.width, 1.25)
    assert not found.bounded  # the lowest rate is still within a tenth


def test_rate_sensitivity_beside_a_diverged_rate():
    found = stats.rate_sensitivity(np.array([0.01, 0.1, 1.0]), np.array([1.2, 1.0, INF]))
    assert found == (INF, 0.5, True)


def test_rate_sensitivity_at_the_edge_knows_one_side_only():
    found = stats.rate_sensitivity(np.array([0.1, 1.0]), np.array([1.0, 2.0]))
    assert_allclose(found[:2], [1.5, 0.1])
    assert not found.bounded


def test_rate_sensitivity_of_close_rates_knows_no_half_decade():
    found = stats.rate_sensitivity(np.array([0.1, 0.2]), np.array([1.0, 1.05]))
    assert math.isnan(found.half_decade)
    assert_allclose(found.width, math.log10(2), atol=1e-6)


def test_half_decade_of_rounded_rates():
    rates = np.array([0.0316, 0.1, 0.316])
    found = stats.rate_sensitivity(rates, np.array([INF, 1.0, 1.3]))
    assert found.half_decade == INF
    assert stats.rate_sensitivity(rates[1:], np.array([1.0, 1.3])).half_decade == pytest.approx(1.3)
