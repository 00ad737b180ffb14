"""Task families by name, for meta-training, which can mix them.

To add a family, subclass `TaskFamily`; name it as `package.module:Class`, or register it by
`register_family` or a package's entry points `celo2.families`.
"""

from __future__ import annotations

import inspect
from typing import Any

from celo2._utils.registry import Registry
from celo2.tasks.families.base import TaskFamily
from celo2.tasks.families.images import (
    AutoencoderFamily,
    DeepMLPFamily,
    ImageConvFamily,
    ImageMLPFamily,
)
from celo2.tasks.families.quadratic import QuadraticFamily
from celo2.tasks.families.regression import RegressionFamily
from celo2.tasks.families.text import RecurrentFamily, TransformerFamily

__all__ = ["FAMILIES", "TaskFamily", "register_family"]


def _as_family(name: str, thing: Any) -> type[TaskFamily]:
    """Checks a family that a user registers."""
    if not (isinstance(thing, type) and issubclass(thing, TaskFamily)):
        raise ValueError(
            f"family {name!r} is {thing!r:.60}, expected a subclass of celo2.tasks.families.TaskFamily."
        )
    if inspect.isabstract(thing):
        raise ValueError(f"family {name!r} lacks the methods {', '.join(sorted(thing.__abstractmethods__))}.")
    if getattr(thing, "source", None) not in ("images", "text", "problem"):
        raise ValueError(f'family {name!r} needs source = "images", "text" or "problem".')
    return thing


FAMILIES: Registry[type[TaskFamily]] = Registry(
    "family",
    "celo2.families",
    {
        "mlp": ImageMLPFamily,
        "deep-mlp": DeepMLPFamily,
        "conv": ImageConvFamily,
        "autoencoder": AutoencoderFamily,
        "transformer": TransformerFamily,
        "rnn": RecurrentFamily,
        "regression": RegressionFamily,
        "quadratic": QuadraticFamily,
    },
    _as_family,
)


def register_family(name: str, family: type[TaskFamily]) -> None:
    """Registers a family of tasks for meta-training (`celo2 meta-train --families`).

    Args:
        name: Its name, of letters, digits and `_ . + -`.
        family: The class, with a `source` and the three abstract methods of `TaskFamily`.

    Raises:
        ValueError: The name is taken, or the class lacks these.
    """
    FAMILIES.register(name, family)
