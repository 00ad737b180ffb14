"""Checks an optimizer's numeric options, as far as they are known when it is created."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any


def is_traceable(value: Any) -> bool:
    """Returns whether a value is an array, traced or not, or a schedule."""
    return hasattr(value, "dtype") or callable(value)


def check_scale(name: str, value: Any, is_unknown: Callable[[Any], bool] = is_traceable) -> None:
    """Raises an error unless a learning rate, weight decay or factor of one is finite and not negative.

    Args:
        name: The option's name.
        value: A number, or a value that `is_unknown` accepts, which is not checked.
        is_unknown: Returns whether a value is not known yet or would cost a transfer.

    Raises:
        TypeError: The value has another type.
        ValueError: A number is out of range.

    Example:
        >>> check_scale("weight_decay", -1)
        Traceback (most recent call last):
        ValueError: weight_decay must be finite and not negative, got -1.
    """
    expected = "a number, finite and not negative"
    if _is_number(name, value, expected, is_unknown) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}.")


def check_betas(name: str, betas: Any, is_unknown: Callable[[Any], bool] = is_traceable) -> None:
    """Raises an error unless there are two decays, which must be in [0, 1) if they are numbers.

    Args:
        name: The option's name.
        betas: The decays.
        is_unknown: As in `check_scale`.

    Raises:
        TypeError: The decays are not a collection, or one has another type.
        ValueError: There are not exactly two, or one is out of range.
    """
    expected = "two decays in [0, 1)"
    if isinstance(betas, str) or not (hasattr(betas, "__len__") and hasattr(betas, "__iter__")):
        raise TypeError(
            f"{name} must be {expected}, got {betas!r} ({type(betas).__name__}); write (0.9, 0.95)."
        )
    known = [beta for beta in betas if _is_number(name, beta, expected, is_unknown)]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in known):
        raise ValueError(f"{name} must be {expected}, got {betas!r}.")


def _is_number(name: str, value: Any, expected: str, is_unknown: Callable[[Any], bool]) -> bool:
    """Returns whether a value is a plain number; raises a TypeError if it is neither that nor unknown."""
    if isinstance(value, Real):
        return True
    if is_unknown(value):
        return False
    hint = "; YAML reads 1e-3 as text: write 1.0e-3" if isinstance(value, str) else ""
    raise TypeError(f"{name} must be {expected}, got {value!r} ({type(value).__name__}){hint}.")
