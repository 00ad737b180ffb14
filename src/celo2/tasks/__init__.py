"""Tasks: the problems that meta-training learns from and that comparisons train on.

To add a task, write a function that returns a `Task`, or use `task_from_model` with a model, a loss and
arrays. `celo2 compare --task package.module:make_task` trains it; `register_task` gives it a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celo2._utils.lazy import import_name

if TYPE_CHECKING:
    from celo2.tasks.base import Dataset, Stream, Task
    from celo2.tasks.from_model import task_from_model
    from celo2.tasks.registry import make_task, register_task

__all__ = ["Dataset", "Stream", "Task", "make_task", "register_task", "task_from_model"]

_HOME = {
    "Dataset": "celo2.tasks.base",
    "Stream": "celo2.tasks.base",
    "Task": "celo2.tasks.base",
    "make_task": "celo2.tasks.registry",
    "register_task": "celo2.tasks.registry",
    "task_from_model": "celo2.tasks.from_model",
}


def __getattr__(name: str) -> Any:
    return import_name(__name__, _HOME, name)
