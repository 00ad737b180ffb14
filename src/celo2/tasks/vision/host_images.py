"""Keeps images in the host's memory or on disk if they do not fit on a device.

On the device, the data set has the images' indices instead, so that batches are drawn as usual; loss and
accuracy fetch a batch's images from the host. Meanwhile the device waits: 1,024 images of
224 × 224 × 3 are 154 MB per step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax import Array

from celo2.tasks.base import Batch, Params, Task

MAX_DEVICE_BYTES = 8 * 2**30  # maximum size of training images placed on the device
Objective = Callable[[Params, Batch], Array]  # loss or accuracy
READERS = 16  # threads, since reads of a mapped file wait for the disk


def keep_on_host(task: Task) -> Task:
    """Returns the task with its images (the arrays `image`) left on the host; nothing else changes.

    A batch's `image` contains int32 indices into the training split followed by the validation split.

    Args:
        task: A task on images `(N, H, W, C)` in each split, as arrays or mapped files.
    """
    splits = tuple(getattr(task.dataset, split)["image"] for split in ("train", "valid"))
    counts = [len(images) for images in splits]
    numbers = np.split(np.arange(sum(counts), dtype=np.int32), counts[:1])
    train, valid = (
        {**arrays, "image": own}
        for arrays, own in zip((task.dataset.train, task.dataset.valid), numbers, strict=True)
    )
    shape, dtype = splits[0].shape[1:], splits[0].dtype

    def read(wanted: Array) -> np.ndarray:
        return _read(splits, np.asarray(wanted))

    def with_images(function: Objective) -> Objective:
        def compute(params: Params, batch: Batch) -> Array:
            wanted = batch["image"]
            kind = jax.ShapeDtypeStruct((*wanted.shape, *shape), dtype)
            images = jax.pure_callback(read, kind, wanted, vmap_method="expand_dims")
            return function(params, {**batch, "image": images})

        return compute

    def with_both(loss: Objective, accuracy: Objective | None) -> tuple[Objective, Objective | None]:
        return with_images(loss), None if accuracy is None else with_images(accuracy)

    loss, accuracy = with_both(task.loss, task.accuracy)
    return dataclasses.replace(
        task,
        dataset=dataclasses.replace(task.dataset, train=train, valid=valid),
        loss=loss,
        accuracy=accuracy,
        undivided=None if task.undivided is None else with_both(*task.undivided),
    )


def _read(splits: tuple[np.ndarray, ...], wanted: np.ndarray) -> np.ndarray:
    """Reads images by their indices over both splits: `(...)` int32 → `(..., H, W, C)`."""
    first = splits[0]
    images = np.empty((wanted.size, *first.shape[1:]), first.dtype)
    flat = wanted.ravel()

    def fill(part: np.ndarray) -> None:
        held_out = flat[part] >= len(first)
        for split, start, mine in ((first, 0, ~held_out), (splits[1], len(first), held_out)):
            chosen = part[mine]
            images[chosen] = np.take(split, flat[chosen] - start, axis=0)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(fill, np.array_split(np.arange(wanted.size), min(READERS, wanted.size))))
    return images.reshape(*wanted.shape, *first.shape[1:])
