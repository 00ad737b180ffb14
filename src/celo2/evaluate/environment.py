"""Describes the software, machine, commit and task that a result came from."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
from pathlib import Path

import jax

from celo2._version import __version__
from celo2.evaluate.suite.results import TaskFacts
from celo2.tasks.base import Task

PACKAGES = ("jax", "jaxlib", "optax", "numpy")


def describe_environment() -> dict[str, str]:
    """Returns versions, machine and commit as text by name; the commit is "unknown" outside a checkout."""
    devices = jax.local_devices()
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "celo2": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **versions,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
    }


def describe_task(task: Task) -> TaskFacts:
    """Returns facts about a task for reports."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return TaskFacts(
        name=task.name,
        dataset=task.dataset.name,
        origin=task.dataset.origin,
        train_examples=task.dataset.size("train"),
        valid_examples=task.dataset.size("valid"),
        batch_size=task.batch_size,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        initial_loss=task.initial_loss if math.isfinite(task.initial_loss) else None,
        tokens_per_batch=task.tokens_per_batch,
        stands_in_for=task.dataset.stands_in_for,
        unit="loss" if task.objective is None else "return",
    )


def _commit() -> str:
    """Returns the commit of this package's checkout, with "-dirty" if files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    if "site-packages" in folder.parts:
        return "unknown"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _processor() -> str:
    """Returns the processor's name, from /proc/cpuinfo if it exists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
