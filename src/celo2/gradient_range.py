"""Range of gradients that weights were meta-trained on, as stated in their file.

The rule depends on the gradient's scale, so the range belongs to the weights and travels in their file:
the provenance field `gradient_rms` is a JSON list of two root mean squares, low and high.
`tools/gradient_range.py` measures and writes it.
"""

from __future__ import annotations

import json
import math

from celo2.weights.checkpoint import Weights, load_checkpoint

FIELD = "gradient_rms"  # the provenance field
# Low and high. Up to a tenth of the gradients in meta-training vanish (runs that fit a small image set
# without error, networks with only dead units), which is not a range the weights were trained on.
QUANTILES = (0.1, 0.99)


def gradient_range(weights: Weights) -> tuple[float, float]:
    """Returns the range of gradient root mean squares in meta-training, without extremes.

    The range spans the 10 % to 99 % quantiles over updated arrays and steps of inner runs.

    Args:
        weights: Weights whose file states the range, as the shipped ones do.

    Returns:
        Low and high, for gradients of the loss in nats with respect to the stored parameters; 0 < low < high.

    Raises:
        ValueError: The file states no range, or not a valid one.

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
    """Returns low and high, taken from the weights where None.

    Raises:
        ValueError: 0 < low < high < ∞ does not hold, or the weights' file states no range.
    """
    if low is None or high is None:
        known = gradient_range(weights if isinstance(weights, Weights) else load_checkpoint(weights))
        low, high = known[0] if low is None else low, known[1] if high is None else high
    check_range(low, high)
    return low, high


def format_range(low: float, high: float) -> str:
    """Formats the provenance field, with two digits: the quantiles are not known more precisely.

    Raises:
        ValueError: 0 < low < high < ∞ does not hold.
    """
    check_range(low, high)
    return json.dumps([float(f"{low:.1e}"), float(f"{high:.1e}")])


def check_range(low: float, high: float) -> None:
    """Raises a ValueError unless 0 < low < high < ∞."""
    if not 0 < low < high < math.inf:
        raise ValueError(f"a range of root mean squares is 0 < low < high < ∞, got {low} and {high}.")


def check_normalization(target: float, decay: float) -> None:
    """Raises a ValueError unless the root mean square and the decay can normalise gradients."""
    if not 0 < target < math.inf:
        raise ValueError(f"target must be a positive number, got {target}.")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}.")
