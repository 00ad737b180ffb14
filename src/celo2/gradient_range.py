"""The range of the gradients that weights were meta-trained on, as their file states it.

The rule depends on the gradient's scale, so the range belongs to the weights and travels in their file:
the provenance field `gradient_rms` is a JSON list of two root mean squares, low and high.
`tools/gradient_range.py` measures and writes it.
"""

from __future__ import annotations

import json
import math

from celo2.weights.checkpoint import Weights, load_checkpoint

FIELD = "gradient_rms"  # of the provenance
# Low and high. Up to a tenth of the gradients in meta-training vanish at any scale (runs that fit a small
# image set without error, networks without a living unit): that is no scale that the weights know.
QUANTILES = (0.1, 0.99)


def gradient_range(weights: Weights) -> tuple[float, float]:
    """The root mean squares between which gradients lay in meta-training, apart from its least and largest.

    The 10 % and 99 % quantiles over arrays that the rule updates and steps of inner runs.

    Args:
        weights: Weights whose file states the range, as the shipped ones' do.

    Returns:
        Low and high, of the loss in nats by the parameters as they are stored; 0 < low < high.

    Raises:
        ValueError: The file states no range, or something else than one.

    Example:
        >>> from celo2 import load_checkpoint
        >>> low, high = gradient_range(load_checkpoint("celo2"))
        >>> 0 < low < high
        True
    """
    text = weights.provenance.get(FIELD)
    if text is None:
        raise ValueError(
            f"these weights do not say which gradients they were trained on (no {FIELD!r} in their "
            "provenance); give low and high, or measure the range with tools/gradient_range.py."
        )
    try:
        low, high = (float(value) for value in json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{FIELD} must be a JSON list of two numbers, found {text!r:.80}.") from error
    check_range(low, high)
    return low, high


def resolve_range(low: float | None, high: float | None, weights: Weights | str) -> tuple[float, float]:
    """Low and high; where one is None, that of the weights.

    Raises:
        ValueError: Not 0 < low < high < ∞, or weights whose file states no range.
    """
    if low is None or high is None:
        known = gradient_range(weights if isinstance(weights, Weights) else load_checkpoint(weights))
        low, high = known[0] if low is None else low, known[1] if high is None else high
    check_range(low, high)
    return low, high


def format_range(low: float, high: float) -> str:
    """The text of the provenance field, to two digits: the quantiles are known no better.

    Raises:
        ValueError: Not 0 < low < high < ∞.
    """
    check_range(low, high)
    return json.dumps([float(f"{low:.1e}"), float(f"{high:.1e}")])


def check_range(low: float, high: float) -> None:
    """Raises a ValueError unless 0 < low < high < ∞."""
    if not 0 < low < high < math.inf:
        raise ValueError(f"a range of root mean squares is 0 < low < high < ∞, got {low} and {high}.")


def check_normalization(target: float, decay: float) -> None:
    """Raises a ValueError for a root mean square or a decay that gradients cannot be normalised with."""
    if not 0 < target < math.inf:
        raise ValueError(f"target must be a positive number, got {target}.")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}.")
