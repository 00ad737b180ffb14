"""Runs on several processes: joining, agreeing on values, placing arrays, and handling a lost process.

Every process runs the same program, and JAX joins their devices into one mesh. Decisions that depend on a
clock, a signal or a file are made by `agree` or by the first process: if processes take different branches,
their collectives deadlock. Only the first process prints and writes, except that each process writes its own
part of a checkpoint. Losing one process ends the others: JAX detects a closed connection immediately, and a
silent machine by its missing heartbeat after 100 s.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from celo2._utils.signals import exit_status

Tree = TypeVar("Tree")

# Substrings of the error messages of JAX's collectives, barriers and heartbeats if another process is gone.
SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")
SHOWN_CHARACTERS = 200  # of such an error message


class ProcessLostError(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others; must be called before any other use of JAX.

    Args:
        coordinator: "HOST:PORT" where the others reach process 0.
        num_processes: Number of processes.
        process_id: Index of this process, in [0, num_processes).

    Without arguments, JAX reads them from the environment of a cluster: Slurm, Open MPI, Kubernetes,
    Cloud TPU.

    Raises:
        ValueError: Some arguments are missing or out of range, or there is no such cluster.
        ConnectionError: The others could not be reached.
    """
    given = (coordinator, num_processes, process_id)
    if given != (None, None, None):
        _check_given(*given)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except ValueError as error:
        raise ValueError(
            f"JAX finds no cluster here ({error}); name the processes by --coordinator HOST:PORT, "
            "--num-processes and --process-id."
        ) from error
    except RuntimeError as error:
        raise ConnectionError(
            f"cannot join the other processes at {coordinator or 'the address of the cluster'} "
            f"({_shorten(error)}); start all of them within five minutes, with one address that they all "
            "reach and a port that is free on the machine of process 0."
        ) from error


def _check_given(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError(
            "coordinator, num_processes and process_id belong together, got "
            f"{coordinator}, {num_processes}, {process_id}; on a cluster that JAX knows, --distributed auto "
            "finds all three."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"coordinator must be HOST:PORT, such as 10.0.0.1:9876, got {coordinator!r}.")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must be in [0, num_processes), got {process_id} of {num_processes}; "
            "the processes count from 0."
        )


def leave(status: int) -> None:
    """Exits immediately after an error if there are several processes; otherwise does nothing.

    A normal exit waits for the others to exit, which may themselves be waiting for this process.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def leaving_on_error() -> Iterator[None]:
    """Exits as `leave` does on unforeseen errors such as a second Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if jax.distributed.is_initialized():
            if is_first():
                print(f"celo2: {str(stop) or 'interrupted.'}", file=sys.stderr)
            leave(exit_status(stop))
        raise
    except BaseException:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            leave(1)
        raise


def is_first() -> bool:
    """Returns whether this process prints and writes files: the only one, or number 0 of several."""
    return jax.process_index() == 0


def agree(*values: int) -> tuple[int, ...]:
    """Returns the maximum of each value over all processes, which must call this in the same order.

    Example:
        >>> agree(3, False)
        (3, 0)
    """
    if jax.process_count() == 1:
        return tuple(map(int, values))
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    row = np.array([values], np.int32)
    split = NamedSharding(mesh, PartitionSpec("devices"))
    rows = jax.make_array_from_callback((mesh.size, len(values)), split, lambda _: row)
    return tuple(int(value) for value in np.asarray(_make_maximum(mesh)(rows)))


def wait_for_all() -> None:
    """Waits until every process has called this."""
    agree(0)


@functools.cache  # so that it is traced once
def _make_maximum(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(lambda rows: jnp.max(rows, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Replicates arrays over the whole mesh; they must be equal in every process."""
    whole = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, whole, lambda index: array[index])

    return jax.tree.map(place, tree)


def is_loss(error: BaseException) -> bool:
    """Returns whether an error means that another process is gone."""
    # Gloo's errors reach Python as ValueError, the others as RuntimeError.
    is_jax = isinstance(error, (RuntimeError, ValueError)) and jax.process_count() > 1
    return is_jax and any(sign in str(error) for sign in SIGNS_OF_LOSS)


@contextmanager
def losses_named(out: os.PathLike[str]) -> Iterator[None]:
    """Replaces JAX's errors about a lost process with a message that says what to do.

    Raises:
        ProcessLostError: In place of JAX's error.
    """
    try:
        yield
    except Exception as error:
        if not is_loss(error):
            raise
        raise ProcessLostError(
            f"process {jax.process_index()} of {jax.process_count()} has lost another one, whose own output "
            f"says why ({_shorten(error)}). The run's last checkpoint is intact; start every process again "
            f"with --resume --out {os.fspath(out)}."
        ) from error


def _shorten(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]} …"
