"""Image classification tasks from any network, and the clipping of classification losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Dataset, Params, Task
from celo2.tasks.nn import accuracy, cross_entropy

NUM_CLASSES = 10  # of every shipped image set


def make_classifier(
    name: str,
    dataset: Dataset,
    init: Callable[[Array], Params],
    compute_logits: Callable[[Params, Array], Array],
    *,
    batch_size: int,
    num_classes: int = NUM_CLASSES,
    initial_loss: float | None = None,
) -> Task:
    """Makes an image task: cross-entropy in nats on images in [0, 1], without centring or scaling.

    Args:
        name: The task's name.
        dataset: `image` uint8, `(N, H, W)` or `(N, H, W, 3)`, and `label` in each split.
        init: `key → params`.
        compute_logits: `(params, images float32 in [0, 1]) → (N, num_classes)`.
        batch_size: Images in a training batch.
        num_classes: K; labels are 0 to K - 1.
        initial_loss: Approximate loss of an untrained network; None: ln K.
    """

    def logits_of(params: Params, batch: Batch) -> Array:
        return compute_logits(params, batch["image"].astype(jnp.float32) / 255.0)

    return Task(
        name=name,
        dataset=dataset,
        init=init,
        loss=lambda params, batch: cross_entropy(logits_of(params, batch), batch["label"]),
        accuracy=lambda params, batch: accuracy(logits_of(params, batch), batch["label"]),
        batch_size=batch_size,
        initial_loss=math.log(num_classes) if initial_loss is None else initial_loss,
    )


LOSS_CLIP = 1.5  # upper bound of a loss, as a multiple of an untrained network's


def clip_or_ceiling(loss: Array, num_classes: int) -> Array:
    """Clips a cross-entropy to [0, 1.5 ln K]; NaN becomes the upper bound."""
    ceiling = LOSS_CLIP * math.log(num_classes)
    clipped = jnp.clip(loss, 0.0, ceiling)
    return jnp.where(jnp.isnan(loss), jnp.asarray(ceiling, loss.dtype), clipped)
