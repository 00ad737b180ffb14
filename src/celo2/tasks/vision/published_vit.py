"""Published vision transformers: on CIFAR-100, under their published names, and ViT-S/16 on ImageNet.

Source: google/learned_optimization for CIFAR-100; for ViT-S/16, Beyer et al. (arXiv 2205.01580), the plain
variant. Their augmentation, mix-up and gradient clipping are omitted, so results are not comparable with
the published ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from jax import Array

from celo2._utils.extras import require
from celo2.tasks.base import Dataset, Params, Size, Task
from celo2.tasks.micro_batches import split_batches
from celo2.tasks.vision.classifier import make_classifier
from celo2.tasks.vision.host_images import MAX_DEVICE_BYTES, keep_on_host
from celo2.tasks.vision.image_sets import (
    IMAGENET_SIDE,
    IMAGENET_TITLE,
    Portion,
    load_evaluation_set,
    load_imagenet,
)

if TYPE_CHECKING:
    from celo2.tasks.vision.vit import VisionTransformer


@dataclasses.dataclass(frozen=True)
class ViTSize:
    """Sizes of a vision transformer.

    Attributes:
        side: Side of an image in pixels.
        patch: Side of a patch in pixels.
        width: Width of the residual stream.
        num_heads: Number of attention heads.
        depth: Number of blocks.
        batch_size: Images in a training batch.
        num_classes: Number of classes.
        rows_at_once: Number of images computed together; None: the whole batch.
    """

    side: int
    patch: int
    width: int
    num_heads: int
    depth: int
    batch_size: int
    num_classes: int = 100
    rows_at_once: int | None = None


WIDE_SHALLOW: Mapping[Size, ViTSize] = {
    "full": ViTSize(side=32, patch=16, width=384, num_heads=6, depth=6, batch_size=128),
    "small": ViTSize(side=16, patch=8, width=96, num_heads=3, depth=3, batch_size=64),
    "tiny": ViTSize(side=8, patch=4, width=32, num_heads=2, depth=1, batch_size=16),
}
SKINNY_DEEP: Mapping[Size, ViTSize] = {
    "full": ViTSize(side=32, patch=16, width=128, num_heads=4, depth=10, batch_size=128),
    "small": ViTSize(side=16, patch=8, width=64, num_heads=2, depth=5, batch_size=64),
    "tiny": ViTSize(side=8, patch=4, width=16, num_heads=2, depth=2, batch_size=16),
}
VIT_S16: Mapping[Size, ViTSize] = {
    "full": ViTSize(
        IMAGENET_SIDE,
        patch=16,
        width=384,
        num_heads=6,
        depth=12,
        batch_size=1_024,
        num_classes=1_000,
        rows_at_once=128,
    ),
    "small": ViTSize(side=32, patch=8, width=96, num_heads=3, depth=4, batch_size=64),
    "tiny": ViTSize(side=8, patch=4, width=16, num_heads=2, depth=2, batch_size=16),
}


def make_cifar100_vit(
    name: str,
    sizes: Mapping[Size, ViTSize],
    *,
    portion: Portion = "80pct",
    size: Size = "full",
    batch_size: int | None = None,
) -> Task:
    """Makes a vision transformer with a class token on CIFAR-100.

    Args:
        name: Name of the task.
        sizes: `WIDE_SHALLOW` or `SKINNY_DEEP`.
        portion: Portion of CIFAR-100's training file.
        size: One of the sizes.
        batch_size: Images in a training batch; None: the size's.
    """
    require("eval", "flax")
    from celo2.tasks.vision.vit import VisionTransformer

    chosen = sizes[size]
    network = VisionTransformer(
        chosen.num_classes, chosen.patch, chosen.width, chosen.depth, chosen.num_heads, pooling="token"
    )
    dataset = load_evaluation_set("cifar100", chosen.side, portion)
    return _make_task(name, dataset, network, batch_size or chosen.batch_size)


def make_vit_s16(*, size: Size = "full", batch_size: int | None = None) -> Task:
    """Makes ViT-S/16 on ImageNet-1k, 224 × 224, pixels in [-1, 1]; smaller sizes train on CIFAR-100.

    It has fixed positions, mean pooling and no augmentation; 22,122,472 parameters. Training images
    stay on the host if they exceed 8 GiB.

    Args:
        size: One of `VIT_S16`.
        batch_size: Images in a training batch; None: the size's.
    """
    require("eval", "flax")
    from celo2.tasks.vision.vit import VisionTransformer

    chosen = VIT_S16[size]
    network = VisionTransformer(
        chosen.num_classes, chosen.patch, chosen.width, chosen.depth, chosen.num_heads, pooling="mean"
    )
    if size == "full":
        dataset = load_imagenet()
    else:
        small = load_evaluation_set("cifar100", chosen.side)
        dataset = dataclasses.replace(small, stands_in_for=IMAGENET_TITLE)
    task = _make_task("vit-s16", dataset, network, batch_size or chosen.batch_size, centre=True)
    if chosen.rows_at_once is not None:
        task = split_batches(task, chosen.rows_at_once)
    too_large = dataset.train["image"].nbytes > MAX_DEVICE_BYTES
    return keep_on_host(task) if too_large else task


def _make_task(
    name: str,
    dataset: Dataset,
    network: VisionTransformer,
    batch_size: int,
    *,
    centre: bool = False,
) -> Task:
    from celo2.tasks.flax_layers import make_functions

    init, compute = make_functions(network, dataset.train["image"].shape[1:])

    def compute_logits(params: Params, images: Array) -> Array:
        return compute(params, 2.0 * images - 1.0 if centre else images)

    classes = network.num_classes
    task = make_classifier(name, dataset, init, compute_logits, batch_size=batch_size, num_classes=classes)
    return dataclasses.replace(task, mean_over_examples=True)


_PORTIONS: Mapping[str, tuple[Portion, str]] = {
    "": ("80pct", "CIFAR-100"),
    "_1pct": ("1pct", "1 % of CIFAR-100"),
}
VIT_TASKS: Mapping[str, tuple[Callable[..., Task], str]] = {
    **{
        f"VIT_Cifar100_{shape}{suffix}": (
            partial(make_cifar100_vit, f"VIT_Cifar100_{shape}{suffix}", sizes, portion=portion),
            f"vision transformer of {sizes['full'].depth} blocks on {data}",
        )
        for shape, sizes in (("wideshallow", WIDE_SHALLOW), ("skinnydeep", SKINNY_DEEP))
        for suffix, (portion, data) in _PORTIONS.items()
    },
    "vit-s16": (make_vit_s16, "ViT-S/16, the plain variant, on ImageNet"),
}
"""Constructor (of `size` and `batch_size`) and one-line summary of each task, by name."""
