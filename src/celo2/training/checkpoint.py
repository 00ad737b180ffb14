"""Checkpoints within long runs: a stopped run resumes at one of its validations, with identical results.

A checkpoint holds everything that the remaining steps depend on (parameters, optimizer state, the source of
the batches) and the losses so far; batches are a function of the seed and the step. It is written at a
validation, but only some minutes after the previous checkpoint, so short runs write none.
"""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from celo2._utils.files import open_atomic
from celo2._utils.user_warnings import warn

MIN_SECONDS = 600.0  # between two checkpoints of a run


class Checkpoints(NamedTuple):
    """Folder for the checkpoints of one group of runs.

    Attributes:
        folder: The folder, created with the first checkpoint; only for runs with the same settings.
        min_seconds: Minimum seconds between two checkpoints of runs that are trained together.
    """

    folder: Path
    min_seconds: float = MIN_SECONDS

    def of(self, pairs: np.ndarray) -> RunCheckpoint:
        """Returns the checkpoint of the runs with these (learning rate, seed) pairs, `(R, 2)` float64."""
        name = hashlib.sha256(np.ascontiguousarray(pairs).tobytes()).hexdigest()[:16]
        return RunCheckpoint(self.folder / f"{name}.npz", self.min_seconds)


class RunCheckpoint:
    """Checkpoint of runs that are trained together: one file, replaced atomically.

    Args:
        path: The file.
        min_seconds: Minimum seconds between two checkpoints.
    """

    def __init__(self, path: Path, min_seconds: float) -> None:
        self._path, self._min_seconds = path, min_seconds
        self._last = time.monotonic()
        self._warned = False

    def is_due(self) -> bool:
        """Returns whether enough time has passed since the last checkpoint, or since the start."""
        return time.monotonic() - self._last >= self._min_seconds

    def save(self, history: Mapping[str, np.ndarray], carry: Any) -> None:
        """Writes the recorded results and the tree that the remaining steps start from.

        If the file cannot be written, for example because the disk is full, the runs continue: a warning is
        shown once, the previous checkpoint stays, and the next one is attempted when it is due.
        """
        leaves = {f"carry_{at}": _as_numpy(leaf) for at, leaf in enumerate(jax.tree.leaves(carry))}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open_atomic(self._path) as file:
                np.savez(file, allow_pickle=False, **history, **leaves)
        except OSError as error:
            if not self._warned:
                warn(f"{self._path} cannot be written ({error}); training goes on without this checkpoint.")
            self._warned = True
        self._last = time.monotonic()

    def load(self, like: Any) -> tuple[dict[str, np.ndarray], Any] | None:
        """Reads the recorded results and the tree.

        Args:
            like: Tree of arrays or `jax.ShapeDtypeStruct` with the structure, dtypes and shardings of the one
                that was saved.

        Returns:
            The recorded results and the tree; None if there is no checkpoint, or, with a warning, if it is
            damaged or has other shapes: the runs then start from the beginning.
        """
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
            leaves, structure = jax.tree.flatten(like)
            found = [_restore(arrays.pop(f"carry_{at}"), leaf) for at, leaf in enumerate(leaves)]
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            warn(f"{self._path} cannot be used ({error}); its runs start from the beginning.")
            return None
        return arrays, jax.tree.unflatten(structure, found)


def _is_key(leaf: Any) -> bool:
    """Returns whether a leaf holds random keys of JAX's own type (`jax.random.key`)."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(leaf: Any) -> np.ndarray:
    """Converts an array to NumPy; random keys are converted to their data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _restore(array: np.ndarray, like: Any) -> Any:
    """Places an array like another one; types that files cannot represent, such as bfloat16, are bytes."""
    if _is_key(like):
        kinds: list[Any] = []  # tracing reveals the key type, which shapes alone do not
        like_data = jax.eval_shape(
            lambda keys: kinds.append(jax.random.key_impl(keys)) or jax.random.key_data(keys), like
        )
        keys = jax.random.wrap_key_data(jnp.asarray(_check(array, like_data)), impl=kinds[0])
        return jax.device_put(keys, like.sharding)
    return jax.device_put(_check(array, like), like.sharding)


def _check(array: np.ndarray, like: Any) -> np.ndarray:
    """Returns an array from a file; raises a ValueError unless it has this shape and type."""
    if array.dtype != like.dtype and array.dtype.kind == "V":
        array = array.view(like.dtype)
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(f"it has {array.dtype} {array.shape}, expected {like.dtype} {like.shape}")
    return array
