"""Issues warnings that point to the user's line."""

from __future__ import annotations

import sys
import warnings

FRAMEWORKS = ("celo2", "jax", "optax", "torch")  # packages between the user's line and the warning


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns with the location of the nearest line outside this package and the frameworks.

    Args:
        message: The text.
        category: The warning class.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_within_frameworks(frame.f_back.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + 1)


def _is_within_frameworks(module: str) -> bool:
    return module.partition(".")[0] in FRAMEWORKS
