"""Registry of tasks by name, and checks of user-defined tasks.

The plain name of a published task selects the published size; suffixes select smaller sizes: `NAME@tiny`,
`NAME@small`. Your own tasks have the name under which they were registered (`register_task`, or a package's
entry points `celo2.tasks`), or the name of the function that makes them, `package.module:make_task`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from celo2._utils.registry import Registry, first_line
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
        make: Function that builds the task; its keyword arguments are the task's options.
        summary: One line for the command line.
        sized: Whether `make` accepts `size`, one of `celo2.tasks.base.SIZES`.
        checked: Whether tasks are checked when made, as user-defined ones are.
    """

    make: Callable[..., Task]
    summary: str
    sized: bool = False
    checked: bool = False


_BUILT_IN: Mapping[str, TaskSpec] = {
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


def _as_spec(name: str, thing: Any) -> TaskSpec:
    """Converts a user's task to an entry: a function that makes it, a task, or an entry."""
    if isinstance(thing, TaskSpec):
        return dataclasses.replace(thing, checked=True)
    if isinstance(thing, Task):
        return TaskSpec(lambda: thing, thing.name, checked=True)
    if not callable(thing):
        raise ValueError(
            f"task {name!r} is {type(thing).__name__}, expected a function that returns a celo2.tasks.Task."
        )
    make: Callable[..., Any] = thing
    sized = "size" in inspect.signature(make).parameters
    return TaskSpec(make, first_line(thing) or f"a task of {name}", sized, checked=True)


TASKS: Registry[TaskSpec] = Registry("task", "celo2.tasks", _BUILT_IN, _as_spec)
"""The tasks by name: this package's, registered ones, and those of installed packages."""


def register_task(name: str, make: Callable[..., Task] | Task | TaskSpec) -> None:
    """Registers a task for comparisons, suites and probes, on the command line and in Python.

    Args:
        name: Its name, of letters, digits and `_ . + -`.
        make: A function without required arguments that returns the task, or the task itself. A function with
            an argument `size` ("tiny", "small" or "full") also provides `NAME@tiny` and `NAME@small`.

    Raises:
        ValueError: The name is taken, or `make` is something else.

    Example:
        >>> from celo2.tasks.quadratic import make_quadratic
        >>> register_task("my-quadratic", lambda: make_quadratic(condition=10.0))
        >>> make_task("my-quadratic").batch_size
        32
    """
    TASKS.register(name, make)


def describe_tasks() -> str:
    """Formats one line per task for a command's help; a star marks tasks with sizes."""
    lines = TASKS.describe(lambda spec: f"{'*' if spec.sized else ' '} {spec.summary}")
    width = max(map(len, lines))
    return "\n".join(f"  {name + line[0]:{width + 1}}{line[1:]}" for name, line in lines.items())


def check_task_name(name: str) -> None:
    """Raises a ValueError that suggests the nearest name if there is no task of this name and size."""
    base, at, size = name.partition("@")
    spec = TASKS.find(base)
    if at and not spec.sized:
        raise ValueError(f"task {base!r} has one size only; leave out {at + size!r}.")
    if at and size not in SIZES:
        raise ValueError(f"unknown size {size!r} of task {base!r}; expected one of {', '.join(SIZES)}.")


def make_task(name: str, **options: Any) -> Task:
    """Builds a task by its name in `TASKS`, with an optional suffix `@SIZE` if it has several sizes.

    Args:
        name: Name of the task, or `package.module:attribute`.
        **options: Keyword arguments of the function that builds it, such as `batch_size`.

    Raises:
        ValueError: No task has this name (the message suggests the nearest), the task lacks this size,
            or `check_task` rejects it.
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
    spec = TASKS.find(base)
    make = spec.make
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise TypeError(f"task {base!r}: {error}; its options: {inspect.signature(make)}.") from error
    task = make(**options)
    if spec.checked:
        check_task(base, task)
    return task


def check_task(name: str, task: Any) -> None:
    """Raises a ValueError that describes how a task differs from the interface, if it does.

    Nothing is trained: shapes are inferred by tracing.

    Args:
        name: The name of the task for messages.
        task: The object made as the task.
    """
    for fault in _find_faults(task):
        raise ValueError(f"task {name!r}: {fault}")


def _find_faults(task: Any) -> Iterator[str]:
    """Yields the faults of a task, the most basic first."""
    if not isinstance(task, Task):
        yield f"it is made as {type(task).__name__}, expected a celo2.tasks.Task."
        return
    if task.stream is None:
        yield from _find_data_faults(task)
    if not (isinstance(task.batch_size, int) and task.batch_size >= 1):
        yield f"batch_size must be a whole number from 1 on, got {task.batch_size!r}."
    if np.isnan(task.initial_loss):
        yield "initial_loss is NaN; expected about the loss of an untrained network, or inf."
    key = jax.random.key(0)
    try:
        params = jax.eval_shape(task.init, key)
    except Exception as error:  # a user's function may raise anything
        yield f"init cannot be traced by JAX: {_one_line(error)}"
        return
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(params)}
    if not kinds or not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        found = ", ".join(sorted(kinds)) or "no"
        yield f"init makes parameters of {found} type, expected floating-point arrays."
    try:
        batch = jax.eval_shape(lambda params, key: task.first_batch(params, key), params, key)
    except Exception as error:
        yield f"a batch cannot be drawn: {_one_line(error)}"
        return
    for what, function in (("loss", task.loss), ("accuracy", task.accuracy)):
        if function is not None:
            yield from _find_scalar_faults(what, function, params, batch)


def _find_data_faults(task: Task) -> Iterator[str]:
    train, valid = task.dataset.train, task.dataset.valid
    if not train:
        yield "its data set has no arrays, and there is no stream; give Dataset(train=…, valid=…)."
    if train.keys() != valid.keys():
        names = f"{sorted(train)} for training and {sorted(valid)} for validation"
        yield f"the arrays are {names}, expected the same names."
    for split, arrays in (("train", train), ("valid", valid)):
        lengths = {name: np.shape(array)[:1] for name, array in arrays.items()}
        if len(set(lengths.values())) > 1 or (0,) in lengths.values() or () in lengths.values():
            told = ", ".join(f"{name} {np.shape(array)}" for name, array in arrays.items())
            yield f"the {split} arrays must have examples on one common leading axis, got {told}."


def _find_scalar_faults(what: str, function: Callable[..., Any], params: Any, batch: Any) -> Iterator[str]:
    try:
        found = jax.eval_shape(function, params, batch)
    except Exception as error:  # a user's function may raise anything
        yield f"{what} cannot be traced by JAX: {_one_line(error)}"
        return
    if not isinstance(found, jax.ShapeDtypeStruct):
        yield f"{what} returns {type(found).__name__}, expected one number, the mean over the batch."
    elif found.shape != ():
        yield f"{what} has shape {found.shape}, expected (), the mean over the batch; take .mean()."
    elif found.dtype != jnp.float32:
        yield f"{what} is {found.dtype.name}, expected float32; convert it by .astype(jnp.float32)."


def _one_line(error: Exception) -> str:
    """Formats an error without the long explanations that JAX adds."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
