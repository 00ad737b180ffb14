"""Checks the numbers among an optimizer's options, as far as they are known when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any


def is_traceable(value: Any) -> bool:
    """Returns whether a value is an array, traced or not, or a schedule."""
    return hasattr(value, "dtype") or callable(value)


def check_scale(name: str, value: Any, is_unknown: Callable[[Any], bool] = is_traceable) -> None:
    """Raises an error unless a learning rate, a weight decay or a factor of one is finite and not negative.

    Args:
        name: The option's name.
        value: A number; or what `is_unknown` accepts, which passes unchecked.
        is_unknown: Tells which values are not known yet, or would cost a transfer.

    Raises:
        TypeError: The value is of another type.
        ValueError: A number is out of the range.

    Example:
        >>> check_scale("weight_decay", -1)
        Traceback (most recent call last):
        ValueError: weight_decay must be finite and not negative, got -1.
    """
    expected = "a number, finite and not negative"
    if _is_number(name, value, expected, is_unknown) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}.")


def check_betas(name: str, betas: Any, is_unknown: Callable[[Any], bool] = is_traceable) -> None:
    """Raises an error unless there are two decays, each in [0, 1) if it is a number.

    Args:
        name: The option's name.
        betas: The decays.
        is_unknown: As in `check_scale`.

    Raises:
        TypeError: The decays are no collection, or one is of another type.
        ValueError: There are not two, or one is out of the range.
    """
    expected = "two decays in [0, 1)"
    if isinstance(betas, str) or not hasattr(betas, "__iter__"):
        raise TypeError(
            f"{name} must be {expected}, got {betas!r} ({type(betas).__name__}); write (0.9, 0.95)."
        )
    known = [beta for beta in betas if _is_number(name, beta, expected, is_unknown)]
    if len(tuple(betas)) != 2 or not all(0 <= beta < 1 for beta in known):
        raise ValueError(f"{name} must be {expected}, got {betas!r}.")


def _is_number(name: str, value: Any, expected: str, is_unknown: Callable[[Any], bool]) -> bool:
    """Returns whether a value is a plain number; raises a TypeError unless it is one or unknown."""
    if isinstance(value, Real):
        return True
    if is_unknown(value):
        return False
    hint = "; YAML reads 1e-3 as text: write 1.0e-3" if isinstance(value, str) else ""
    raise TypeError(f"{name} must be {expected}, got {value!r} ({type(value).__name__}){hint}.")
