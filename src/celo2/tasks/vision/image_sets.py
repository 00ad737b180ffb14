"""Image sets for the published evaluation tasks: a local copy, or a stand-in under its own name.

The published tasks train on the first 80 % of a set's training file, `NAME-80pct`, and validate on its
last 10 %; the 10 % in between and the official test set are not used. The order is that of the original
files. The published loader reads records shuffled by its own library: the splits have the same sizes
but different members.

There is no network access. The folders looked up in `$CELO2_DATA` and `~/.cache/celo2` are
`mnist` and `fashion-mnist` (IDX files), `cifar-10-batches-bin`, `cifar-100-binary`, and `imagenet`
(arrays, see `load_imagenet`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from celo2.config import nearest_name
from celo2.tasks.base import Dataset
from celo2.tasks.vision.datasets import (
    find_folder,
    load_cifar10,
    load_cifar100,
    load_fashion_mnist,
    load_mnist,
    map_images,
)
from celo2.tasks.vision.transforms import colour_crops, resize_bilinear

Portion = Literal["80pct", "1pct"]  # of the training file

IMAGENET_SIDE = 224  # pixels
IMAGENET_TITLE = "ImageNet-1k"
_IMAGENET_CLASSES = 1_000
_ONE_PERCENT = 500  # images: 1 % of CIFAR's training file, and as many of a stand-in
_PATCHES = (20_000, 2_500)  # training and validation crops
_ENLARGED_PATCHES = (500, 100)  # the same at 224 × 224 pixels
_CELLS = (5, 2)  # rows and columns of cells, for 100 classes from ten photographs


class _Source(NamedTuple):
    """A published set: its title, its folder, its reader, and the loader of its stand-in."""

    title: str
    folder: str
    load: Callable[[], Dataset]
    load_stand_in: Callable[[], Dataset]


def load_evaluation_set(name: str, side: int, portion: Portion = "80pct") -> Dataset:
    """Loads the training and validation images of a published evaluation task.

    The result is cached in memory.

    Args:
        name: `"mnist"`, `"fashion-mnist"`, `"cifar10"` or `"cifar100"`.
        side: Side of the images in pixels; images of other sizes are resized without antialiasing.
        portion: `"1pct"`: train on the first 500 images only. The reference's loaders do so for
            CIFAR-100, by an oversight that also affects its published results.

    Returns:
        `image` uint8 `(N, side, side)` or `(N, side, side, 3)` and `label` uint8 `(N,)` in each split.

    Raises:
        ValueError: An unknown name, or a file of the local copy is damaged.
        FileNotFoundError: The local copy lacks a file.
        ImportError: There is no local copy, and the stand-in needs scikit-image.
    """
    if name not in _SOURCES:
        raise ValueError(
            f"unknown image set {name!r}{nearest_name(name, _SOURCES)} There are {', '.join(_SOURCES)}."
        )
    return _prepare(name, side, portion, find_folder(_SOURCES[name].folder))


def load_patches(
    num_classes: Literal[10, 100], num_train: int = _PATCHES[0], num_valid: int = _PATCHES[1]
) -> Dataset:
    """Loads 32 × 32 × 3 crops of ten photographs, the stand-in for the published colour sets.

    Args:
        num_classes: 10: the photographs; 100: ten cells of each photograph.
        num_train: Training crops, a multiple of `num_classes`.
        num_valid: Validation crops, from other pixels.

    Raises:
        ImportError: scikit-image is not installed.
    """
    grid = (1, 1) if num_classes == 10 else _CELLS
    train_image, train_label, valid_image, valid_label = colour_crops(num_train, num_valid, grid)
    return Dataset(
        name=f"patches{num_classes}-rgb-32x32",
        train={"image": train_image, "label": train_label},
        valid={"image": valid_image, "label": valid_label},
        origin=f"crops of ten photographs in the scikit-image wheel, {num_classes} classes; cut here",
    )


def load_imagenet() -> Dataset:
    """Loads ImageNet-1k, 224 × 224 × 3, from local arrays, or crops of photographs if there are none.

    The folder `imagenet` holds `train_image.npy` and `valid_image.npy`, uint8 `(N, 224, 224, 3)`, resized and
    cropped beforehand, and `train_label.npy` and `valid_label.npy`, integers `(N,)` from 0 to 999. Images
    are mapped into memory, 150,528 bytes each; a task places them on the device, or leaves them on the host
    if there are too many (`celo2.tasks.vision.host_images`).

    Returns:
        `image` uint8 and `label` integers in each split. The name is `imagenet`, or
        `patches100-rgb-224x224` for enlarged 32 × 32 crops.

    Raises:
        FileNotFoundError: The folder lacks a file.
        ValueError: An array has another shape or type, or a label is out of range.
        ImportError: There is no folder, and scikit-image is not installed.
    """
    folder = find_folder("imagenet")
    if folder is None:
        patches = load_patches(100, *_ENLARGED_PATCHES)
        return _resize(dataclasses.replace(patches, stands_in_for=IMAGENET_TITLE), IMAGENET_SIDE)
    splits = [_imagenet_split(folder, split) for split in ("train", "valid")]
    return Dataset(name="imagenet", train=splits[0], valid=splits[1], origin=f"ImageNet-1k, from {folder}")


def _imagenet_split(folder: Path, split: str) -> dict[str, np.ndarray]:
    paths = {name: folder / f"{split}_{name}.npy" for name in ("image", "label")}
    arrays = {}
    for name, path in paths.items():
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} does not exist; the folder {folder} is incomplete.") from error
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a readable .npy file: {error}") from error
    image, label = arrays["image"], arrays["label"]
    if image.dtype != np.uint8 or image.shape != (len(image), IMAGENET_SIDE, IMAGENET_SIDE, 3):
        raise ValueError(f"{paths['image']} is {image.dtype} {image.shape}; expected uint8 (N, 224, 224, 3).")
    if label.dtype.kind not in "iu" or label.shape != (len(image),):
        raise ValueError(
            f"{paths['label']} is {label.dtype} {label.shape}; expected integers ({len(image)},)."
        )
    if label.size == 0 or label.min() < 0 or label.max() >= _IMAGENET_CLASSES:
        raise ValueError(f"{paths['label']} must have labels from 0 to {_IMAGENET_CLASSES - 1}.")
    return {"image": image, "label": label.astype(np.int32)}


@functools.cache
def _prepare(name: str, side: int, portion: Portion, folder: Path | None) -> Dataset:
    """Loads as `load_evaluation_set` does, from the folder of the local copy; None: the stand-in."""
    source = _SOURCES[name]
    if folder is None:
        dataset = dataclasses.replace(source.load_stand_in(), stands_in_for=source.title)
    else:
        dataset = _published_split(source.load())
    return _resize(_first_images(dataset) if portion == "1pct" else dataset, side)


def _published_split(dataset: Dataset) -> Dataset:
    """Selects the first 80 % and the last 10 % of the training file."""
    count = dataset.size("train")

    def rows(start: int, stop: int) -> dict[str, Any]:
        return {name: np.ascontiguousarray(array[start:stop]) for name, array in dataset.train.items()}

    train, valid = rows(0, round(0.8 * count)), rows(round(0.9 * count), count)
    return dataclasses.replace(dataset, name=f"{dataset.name}-80pct", train=train, valid=valid)


def _first_images(dataset: Dataset) -> Dataset:
    """Selects the 1 % split: the first images of the 80 % split, with the same validation images."""
    train = {name: array[:_ONE_PERCENT].copy() for name, array in dataset.train.items()}
    published = dataset.name.removesuffix("-80pct")
    name = f"{dataset.name}-first-{_ONE_PERCENT}" if published == dataset.name else f"{published}-1pct"
    return dataclasses.replace(dataset, name=name, train=train)


def _resize(dataset: Dataset, side: int) -> Dataset:
    native = dataset.train["image"].shape[1]
    if side == native:
        return dataset
    named = dataclasses.replace(dataset, name=dataset.name.replace(f"-{native}x{native}", ""))
    return map_images(named, f"{side}x{side}", lambda images: resize_bilinear(images, side))


_SOURCES: Mapping[str, _Source] = {
    "mnist": _Source(
        "MNIST", "mnist", functools.partial(load_mnist, "full"), functools.partial(load_mnist, "sample")
    ),
    "fashion-mnist": _Source(
        "Fashion-MNIST",
        "fashion-mnist",
        functools.partial(load_fashion_mnist, "full"),
        functools.partial(load_fashion_mnist, "sample"),
    ),
    "cifar10": _Source("CIFAR-10", "cifar-10-batches-bin", load_cifar10, functools.partial(load_patches, 10)),
    "cifar100": _Source("CIFAR-100", "cifar-100-binary", load_cifar100, functools.partial(load_patches, 100)),
}
