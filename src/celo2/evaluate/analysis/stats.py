"""Statistics of a suite, as pure functions of arrays.

Objectives are losses, where lower is better; returns are negated. Diverged runs are never excluded: the
final loss is +inf, the score 0, the ratio to any loss +inf, and the speed-up 0. With

    L  final loss of a run            B  final loss of the baseline (mean over its seeds)

the score of a run is `B / L`, or `return / baseline's return`: 1 equals the baseline, higher is better.

References:
    IQM, stratified bootstrap, probability of improvement, run-score profiles: Agarwal et al.,
        arXiv 2108.13264 (rliable).
    Performance profiles: Dolan and Moré, Mathematical Programming 91 (2002), 201-213, arXiv cs/0102001.
    Time to a target as the measure of a training algorithm: Dahl et al., arXiv 2306.07179.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

TOLERANCE = 0.1  # relative loss within which a learning rate counts as equal to the best
HALF_DECADE = 0.5
ROUNDING = 0.03  # decades; rates are rounded, and 1, 3, 10 are half a decade apart
RESAMPLES = 2000


class Interval(NamedTuple):
    """Confidence interval."""

    low: float
    high: float


class RateSensitivity(NamedTuple):
    """Sensitivity of the final loss to the learning rate.

    Attributes:
        half_decade: The loss ratio (≥ 1) half a decade off the best rate, on the worse side; +inf if runs
            diverged there, NaN if the grid does not extend so far on either side.
        width: The range of rates around the best, in decades, whose loss is within 10 % of the best.
        bounded: Whether both ends of that range lie inside the grid; otherwise the width is a lower bound.
    """

    half_decade: float
    width: float
    bounded: bool


def final_losses(curves: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Returns the last points of curves, `(R, P)` → `(R,)`; +inf if not finite or the run diverged."""
    last = np.asarray(curves, np.float64)[:, -1]
    return np.where(np.asarray(diverged, bool) | ~np.isfinite(last), np.inf, last)


def lowest(curves: np.ndarray) -> np.ndarray:
    """Returns the lowest finite point of each curve, `(…, P)` → `(…)`; +inf if there is none."""
    exact = np.asarray(curves, np.float64)
    return np.where(np.isfinite(exact), exact, np.inf).min(-1)


def steps_to_target(steps: np.ndarray, losses: np.ndarray, target: float) -> float:
    """Returns the first step of a curve at which the loss reaches a target or less; +inf if there is none.

    There is no interpolation: the result is a point of the curve, never too early.

    Args:
        steps: The steps (or seconds) at each point, `(P,)`, ascending.
        losses: The curve, `(P,)`; NaN reaches no target.
        target: The target loss, finite.

    Example:
        >>> steps_to_target(np.array([10, 20, 30]), np.array([3.0, 2.0, 1.0]), 2.5)
        20.0
    """
    reached = np.asarray(losses) <= target
    return float(steps[int(reached.argmax())]) if reached.any() else math.inf


def speed_up(steps: np.ndarray, losses: np.ndarray, target: float, length: float) -> float:
    """Computes the speed-up in reaching the baseline's final loss: `length ÷ steps_to_target`.

    Args:
        steps: The steps, or seconds, at each point of the optimizer's curve, `(P,)`.
        losses: The curve, `(P,)`.
        target: The baseline's final loss.
        length: The length of the baseline's run, in the unit of `steps`.

    Returns:
        The speed-up; 0 if the target is never reached.
    """
    return length / steps_to_target(steps, losses, target)


def normalized_scores(losses: np.ndarray, baseline: float, *, returns: bool = False) -> np.ndarray:
    """Computes scores relative to the baseline, `baseline / loss`: 1 equals it, higher is better.

    For returns (negated, as losses) the score is the inverse, `return / baseline's return`, and 0 for
    negative returns. Diverged runs (a loss that is not finite) score 0; a loss of exactly 0 scores +inf, or
    1 if the baseline's is 0 too.

    Args:
        losses: The final losses, any shape.
        baseline: The baseline's final loss (mean over its seeds).
        returns: Whether the losses are negated returns.

    Raises:
        ValueError: The ratio is meaningless: a loss is negative, or the baseline's return is not positive.

    Example:
        >>> normalized_scores(np.array([0.5, 2.0, np.inf]), 1.0)
        array([2. , 0.5, 0. ])
        >>> normalized_scores(np.array([-30.0, 5.0]), -20.0, returns=True)
        array([1.5, 0. ])
    """
    losses = np.asarray(losses, np.float64)
    finite = np.isfinite(losses)
    if returns:
        if not baseline < 0:
            raise ValueError(f"the baseline's return must be positive, got {-baseline}.")
        return np.where(finite, np.maximum(np.where(finite, losses, 0.0) / baseline, 0.0), 0.0)
    if not 0 <= baseline < math.inf or (losses[finite] < 0).any():
        raise ValueError(f"losses must not be negative, got {losses} and the baseline's {baseline}.")
    both_zero = (losses == 0) & (baseline == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(both_zero, 1.0, baseline / losses)
    return np.where(finite, ratios, 0.0)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Computes the mean of the middle half of the scores, `(…, N)` → `(…)`: rliable's IQM, section 4.3."""
    return np.asarray(stats.trim_mean(scores, 0.25, axis=-1))


def bootstrap_interval(
    scores: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    *,
    tasks: bool = False,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Computes a percentile bootstrap interval of a statistic, resampling seeds within each task.

    The interval covers the variation over seeds on the same tasks. With `tasks`, tasks are first drawn with
    replacement, so it also covers the variation over similar tasks.

    Args:
        scores: The scores of each task's seeds, `(S_t,)`, S_t ≥ 1. With one seed per task, the interval
            over seeds alone is a point.
        statistic: The statistic, `(R, N) → (R,)`.
        tasks: Whether to resample tasks too; a drawn task contributes as many runs as the task it replaces.
        level: The coverage in (0, 1).
        resamples: The number R of resamples.
        seed: The random seed; the same arguments give the same interval.
    """
    rng = np.random.default_rng(seed)
    counts = np.array([len(one) for one in scores])
    padded = np.zeros((len(scores), counts.max()))
    for row, one in zip(padded, scores, strict=True):
        row[: len(one)] = one
    drawn = []
    for place, count in enumerate(counts):
        chosen = rng.integers(len(scores), size=resamples) if tasks else np.full(resamples, place)
        seeds = rng.integers(counts[chosen][:, None], size=(resamples, count))
        drawn.append(padded[chosen[:, None], seeds])
    values = statistic(np.concatenate(drawn, axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")  # also defined for +inf
    return Interval(float(low), float(high))


def probability_of_improvement(losses: Sequence[np.ndarray], baseline: Sequence[np.ndarray]) -> float:
    """Computes the probability of ending lower than the baseline: mean P(X < Y) + ½ P(X = Y) over tasks.

    The share over pairs of seeds is the Mann-Whitney statistic (rliable, section 4.3). Diverged runs: +inf.

    Args:
        losses: The final losses of each task's seeds, `(S_t,)`.
        baseline: The same for the baseline, `(S'_t,)`.
    """
    shares = []
    for ours, theirs in zip(losses, baseline, strict=True):
        x, y = np.asarray(ours)[:, None], np.asarray(theirs)[None, :]
        shares.append(((x < y) + 0.5 * (x == y)).mean())
    return float(np.mean(shares))


def performance_profile(scores: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Computes the share of runs that score at least each threshold, with tasks weighted equally.

    Thresholds are `(T,)`, and so is the result. This is the run-score distribution of rliable (section 4.2):
    Dolan and Moré's profile of the ratio 1 / score.
    """
    shares = [(np.asarray(one)[:, None] >= thresholds[None, :]).mean(0) for one in scores]
    return np.mean(shares, axis=0)


def mean_ranks(losses: np.ndarray) -> np.ndarray:
    """Computes mean ranks over tasks, `(tasks, optimizers)` → `(optimizers,)`; 1 is the lowest loss.

    Equal losses, such as those of diverged runs, share the mean of their ranks. NaN marks optimizers
    not run, and hence not ranked, on a task; the result is NaN for optimizers without any run.
    """
    ranks = np.asarray(stats.rankdata(losses, axis=1, nan_policy="omit"))
    run = np.isfinite(ranks)
    return np.where(run.any(0), np.where(run, ranks, 0.0).sum(0) / np.maximum(run.sum(0), 1), np.nan)


def rate_sensitivity(rates: np.ndarray, ratios: np.ndarray) -> RateSensitivity:
    """Computes the sensitivity to the learning rate, interpolating linearly in the rate's logarithm.

    Args:
        rates: The learning rates, `(L,)`, ascending.
        ratios: The final losses divided by the lowest, `(L,)`, ≥ 1, with 1 at the best rate; +inf where a
            run diverged. Between such a rate and its neighbour, the loss counts as infinite.

    Example:
        >>> rate_sensitivity(np.array([0.01, 0.1, 1.0]), np.array([1.2, 1.0, np.inf]))
        RateSensitivity(half_decade=inf, width=0.5, bounded=True)
    """
    place, best = np.log10(rates), int(np.argmin(ratios))
    sides = [(place[best] - place[best::-1], ratios[best::-1]), (place[best:] - place[best], ratios[best:])]
    off = [_interpolate(away, grown) for away, grown in sides if away[-1] >= HALF_DECADE - ROUNDING]
    ends = [_crossing(away, grown) for away, grown in sides]
    width = round(sum(end for end, _ in ends), 6)  # removes rounding errors in the logarithms
    return RateSensitivity(max(off, default=math.nan), width, all(inside for _, inside in ends))


def _interpolate(away: np.ndarray, ratios: np.ndarray) -> float:
    """Returns the ratio half a decade away from the best rate."""
    after = int(np.argmax(away >= HALF_DECADE - ROUNDING))
    before, beyond = ratios[after - 1], ratios[after]
    if not math.isfinite(before + beyond):
        return math.inf
    share = min((HALF_DECADE - away[after - 1]) / (away[after] - away[after - 1]), 1.0)
    return float(before + share * (beyond - before))


def _crossing(away: np.ndarray, ratios: np.ndarray) -> tuple[float, bool]:
    """Returns the distance up to which the ratio is within tolerance, and whether it ends inside the grid."""
    beyond = ratios > 1 + TOLERANCE
    if not beyond.any():
        return float(away[-1]), False
    after = int(beyond.argmax())
    if not math.isfinite(ratios[after]):
        return float(away[after - 1]), True
    share = (1 + TOLERANCE - ratios[after - 1]) / (ratios[after] - ratios[after - 1])
    return float(away[after - 1] + share * (away[after] - away[after - 1])), True
