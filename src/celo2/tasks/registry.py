"""The tasks by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from celo2.config import nearest_name
from celo2.tasks.base import Task
from celo2.tasks.convolution import make_fashion_conv
from celo2.tasks.mlp import make_digits_mlp, make_fashion_mlp
from celo2.tasks.quadratic import make_quadratic
from celo2.tasks.transformer import make_tiny_lm

__all__ = ["TASKS", "TaskSpec", "make_task"]


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task that can be asked for by name.

    Attributes:
        make: Builds it; its keywords are the task's options.
        summary: One line for the command line.
    """

    make: Callable[..., Task]
    summary: str


TASKS: Mapping[str, TaskSpec] = {
    "fashion-mlp": TaskSpec(make_fashion_mlp, "784-128-128-10 perceptron on Fashion-MNIST, 28 × 28"),
    "fashion-conv": TaskSpec(make_fashion_conv, "three strided convolutions on Fashion-MNIST, 28 × 28"),
    "digits-mlp": TaskSpec(make_digits_mlp, "64-32-32-10 perceptron on the UCI digits, 8 × 8"),
    "tiny-lm": TaskSpec(make_tiny_lm, "two-layer transformer on the bytes of Python's standard library"),
    "quadratic": TaskSpec(make_quadratic, "ill-conditioned quadratic of a 64 × 32 matrix, minimum 0"),
}


def make_task(name: str, **options: Any) -> Task:
    """Builds a task by its name in `TASKS`.

    Args:
        name: The task.
        **options: Keywords of the function that builds it, `batch_size` say.

    Raises:
        ValueError: No task has this name; the message suggests the nearest.
        TypeError: The task has no such option.

    Example:
        >>> make_task("digits-mlp", batch_size=32).batch_size
        32
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{nearest_name(name, TASKS)} (tasks: {', '.join(TASKS)})")
    make = TASKS[name].make
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise TypeError(f"task {name!r}: {error}; its options: {inspect.signature(make)}.") from error
    return make(**options)
