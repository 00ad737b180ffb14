"""Image classification: from a network to a `Task`, whatever the network is."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Dataset, Params, Task
from celo2.tasks.nn import accuracy, cross_entropy

NUM_CLASSES = 10  # of every image set that is shipped


def make_classifier(
    name: str,
    dataset: Dataset,
    init: Callable[[Array], Params],
    compute_logits: Callable[[Params, Array], Array],
    *,
    batch_size: int,
    num_classes: int = NUM_CLASSES,
    initial_loss: float | None = None,
    clip: Callable[[Array, int], Array] | None = None,
) -> Task:
    """An image task: cross-entropy in nats on images in [0, 1], neither centred nor scaled.

    Args:
        name: The task's name.
        dataset: `image` uint8, `(N, H, W)` or `(N, H, W, 3)`, and `label` in each split.
        init: `key → params`.
        compute_logits: `(params, images float32 in [0, 1]) → (N, num_classes)`.
        batch_size: Images in a training batch.
        num_classes: K; labels are 0 to K - 1.
        initial_loss: What an untrained network scores; None: ln K.
        clip: `(loss, K) → loss`, the published bounds, see `celo2.tasks.vision.classifier`.
    """

    def clip_loss(loss: Array) -> Array:
        return clip(loss, num_classes) if clip else loss

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
        clip=clip_loss if clip else None,
    )


LOSS_CLIP = 1.5  # times the loss of an untrained network: the ceiling


def clip_cross_entropy(loss: Array, num_classes: int) -> Array:
    """Within [0, 1.5 ln K]; NaN stays NaN."""
    return jnp.clip(loss, 0.0, LOSS_CLIP * math.log(num_classes))


def clip_or_ceiling(loss: Array, num_classes: int) -> Array:
    """Within [0, 1.5 ln K]; NaN becomes the ceiling."""
    ceiling = LOSS_CLIP * math.log(num_classes)
    return jnp.where(jnp.isnan(loss), jnp.asarray(ceiling, loss.dtype), clip_cross_entropy(loss, num_classes))


def clip_to_ten(loss: Array, num_classes: int) -> Array:
    """`10 loss / ln 2K` within [0, 10]; what is not finite becomes 10, an infinite gain too."""
    ceiling = math.log(2 * num_classes)
    finite = jnp.where(jnp.isfinite(loss), loss, jnp.asarray(ceiling, loss.dtype))
    return jnp.clip(10.0 * finite / ceiling, 0.0, 10.0)


def clip_error(loss: Array) -> Array:
    """A squared error of values in [0, 1], within [0, 1]; NaN stays NaN."""
    return jnp.clip(loss, 0.0, 1.0)
