"""Checks the numbers among an optimizer's options, as far as they are known when it is made."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def check_scale(name: str, value: Any) -> None:
    """Raises an error unless a learning rate, a weight decay or a factor of one is finite and not negative.

    Arrays, traced or not, and schedules pass unchecked: their values are not known, or cost a transfer.

    Raises:
        TypeError: The value is neither a number nor an array nor a function.
        ValueError: A number is out of the range.

    Example:
        >>> check_scale("weight_decay", -1)
        Traceback (most recent call last):
        ValueError: weight_decay must be finite and not negative, got -1.
    """
    if _is_known(name, value) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}.")


def check_betas(name: str, betas: Any) -> None:
    """Raises an error unless there are two decays, each in [0, 1) if it is a plain number.

    Raises:
        TypeError: A decay is neither a number nor an array.
        ValueError: There are not two, or one is out of the range.
    """
    found = tuple(betas) if hasattr(betas, "__iter__") and not isinstance(betas, str) else ()
    if len(found) != 2 or not all(0 <= beta < 1 for beta in found if _is_known(name, beta)):
        raise ValueError(f"{name} must be two decays in [0, 1), got {betas!r}.")


def _is_known(name: str, value: Any) -> bool:
    """Returns whether a value is a plain number, rather than an array or a function."""
    if isinstance(value, str):
        raise TypeError(
            f"{name} must be a number, got the text {value!r}; YAML reads 1e-3 as text and 1.0e-3 as a "
            "number: write it so, or convert it by float()."
        )
    if isinstance(value, Real):
        return True
    if hasattr(value, "dtype") or callable(value):
        return False
    raise TypeError(f"{name} must be a number, got {value!r}.")
