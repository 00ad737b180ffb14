"""Registry of the tasks by name.

The plain name of a published task has the published size; a suffix selects a smaller one: `NAME@tiny`,
`NAME@small`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from celo2.config import nearest_name
from celo2.tasks.base import SIZES, Task
from celo2.tasks.language.published import GPTS, RNN_LMS, TRANSFORMER_LMS
from celo2.tasks.language.tiny_lm import make_byte_lm, make_tiny_lm
from celo2.tasks.learned_optimizer.task import LEARNED_OPTIMIZERS
from celo2.tasks.quadratic import make_quadratic
from celo2.tasks.rl.minatar import MINATAR_TASKS
from celo2.tasks.vision.convolution import make_conv, make_fashion_conv
from celo2.tasks.vision.mlp import (
    make_autoencoder,
    make_digits_mlp,
    make_fashion_mlp,
    make_mlp,
)
from celo2.tasks.vision.published import IMAGE_TASKS
from celo2.tasks.vision.published_vit import VIT_TASKS


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Entry of the registry.

    Attributes:
        make: Function that builds the task; its keywords are the task's options.
        summary: One line for the command line.
        sized: Whether `make` takes `size`, one of `celo2.tasks.base.SIZES`.
    """

    make: Callable[..., Task]
    summary: str
    sized: bool = False


TASKS: Mapping[str, TaskSpec] = {
    "fashion-mlp": TaskSpec(make_fashion_mlp, "784-128-128-10 perceptron on Fashion-MNIST, 28 × 28"),
    "fashion-conv": TaskSpec(make_fashion_conv, "three strided convolutions on Fashion-MNIST, 28 × 28"),
    "digits-mlp": TaskSpec(make_digits_mlp, "64-32-32-10 perceptron on the UCI digits, 8 × 8"),
    "tiny-lm": TaskSpec(make_tiny_lm, "two-layer transformer on the bytes of Python's standard library"),
    "quadratic": TaskSpec(make_quadratic, "ill-conditioned quadratic of a 64 × 32 matrix, minimum 0"),
    "mlp": TaskSpec(make_mlp, "perceptron of any size on a shipped image set"),
    "autoencoder": TaskSpec(make_autoencoder, "autoencoder of any size of a shipped image set"),
    "conv": TaskSpec(make_conv, "strided convolutions of any size on a shipped image set"),
    "byte-lm": TaskSpec(make_byte_lm, "byte-level transformer of any size on a text of Python's own"),
    **{
        name: TaskSpec(make, summary, sized=True)
        for table in (
            IMAGE_TASKS,
            VIT_TASKS,
            TRANSFORMER_LMS,
            RNN_LMS,
            LEARNED_OPTIMIZERS,
            GPTS,
            MINATAR_TASKS,
        )
        for name, (make, summary) in table.items()
    },
}


def check_task_name(name: str) -> None:
    """Raises a ValueError, with the nearest name, if `make_task` has no task of this name and size."""
    base, at, size = name.partition("@")
    if base not in TASKS:
        raise ValueError(f"unknown task {base!r}{nearest_name(base, TASKS)} There are {', '.join(TASKS)}.")
    if at and not TASKS[base].sized:
        raise ValueError(f"task {base!r} has one size only; leave out {at + size!r}.")
    if at and size not in SIZES:
        raise ValueError(f"unknown size {size!r} of task {base!r}; expected one of {', '.join(SIZES)}.")


def make_task(name: str, **options: Any) -> Task:
    """Builds a task by its name in `TASKS`, with an optional suffix `@SIZE` if it has several sizes.

    Args:
        name: Name of the task.
        **options: Keywords of the function that builds it, such as `batch_size`.

    Raises:
        ValueError: No task has this name (the message suggests the nearest), or it has no such size.
        TypeError: The task has no such option.
        FileNotFoundError, ImportError: Its data set cannot be loaded.

    Example:
        >>> make_task("digits-mlp", batch_size=32).batch_size
        32
    """
    check_task_name(name)
    base, at, size = name.partition("@")
    if at:
        options["size"] = size
    make = TASKS[base].make
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise TypeError(f"task {base!r}: {error}; its options: {inspect.signature(make)}.") from error
    return make(**options)
