"""The data of the published image tasks: splits of local copies, stand-ins, and files that are damaged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from celo2.tasks.vision import datasets, transforms
from celo2.tasks.vision.formats import read_cifar100_binary
from celo2.tasks.vision.image_sets import (
    load_evaluation_set,
    load_imagenet,
    load_patches,
)
from celo2.tasks.vision.transforms import PHOTOGRAPHS, colour_crops, resize_bilinear
from helpers.published_files import idx_bytes

RECORD = 2 + 3072  # of CIFAR-100: coarse label, fine label, three planes


@pytest.fixture(autouse=True)
def no_local_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but the folder returned, `$CELO2_DATA`."""
    monkeypatch.setenv("CELO2_DATA", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(datasets, "_DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path


def write_idx_set(folder: Path, count: int) -> np.ndarray:
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(pictures))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(count) % 10))
    return pictures


def write_cifar100(folder: Path, records: np.ndarray, sizes: tuple[int, int] = (50_000, 10_000)) -> None:
    """These records, and zeros up to the published number, which take no room on the disk."""
    folder.mkdir()
    for name, count in zip(("train", "test"), sizes, strict=True):
        with (folder / f"{name}.bin").open("wb") as file:
            file.write(records.tobytes())
            file.truncate(count * RECORD)


def cifar100_records(count: int) -> np.ndarray:
    records = np.random.default_rng(1).integers(0, 256, (count, RECORD), dtype=np.uint8)
    records[:, :2] %= 100
    return records


# Local copies.


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_split_is_the_first_eighty_and_the_last_ten_percent_of_the_training_file(
    no_local_copies: Path, name: str
) -> None:
    pictures = write_idx_set(no_local_copies / name, 30)
    dataset = load_evaluation_set(name, 28)
    assert dataset.name == f"{name}-80pct"
    assert_array_equal(dataset.train["image"], pictures[:24])
    assert_array_equal(dataset.valid["image"], pictures[27:])
    assert_array_equal(dataset.valid["label"], [7, 8, 9])
    assert load_evaluation_set(name, 8).name == f"{name}-80pct-8x8"


def test_cifar100_has_its_fine_labels_and_both_splits(no_local_copies: Path) -> None:
    records = cifar100_records(600)
    write_cifar100(no_local_copies / "cifar-100-binary", records)
    whole, part = (load_evaluation_set("cifar100", 32, portion) for portion in ("80pct", "1pct"))
    assert (whole.name, part.name) == ("cifar100-80pct", "cifar100-1pct")
    assert (whole.size("train"), whole.size("valid")) == (40_000, 5_000)
    assert (part.size("train"), part.size("valid")) == (500, 5_000)
    assert_array_equal(part.train["label"], records[:500, 1])
    assert_array_equal(whole.train["image"][599, 3, 5], records[599, 2:].reshape(3, 32, 32)[:, 3, 5])


def test_cifar100_file_of_another_size_or_label_is_refused(tmp_path: Path) -> None:
    records = cifar100_records(3)
    (tmp_path / "test.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(ValueError, match=r"9221 bytes, expected 9222 .*cifar-100-binary"):
        read_cifar100_binary(tmp_path / "test.bin", 3)
    records[1, 1] = 100
    (tmp_path / "test.bin").write_bytes(records.tobytes())
    with pytest.raises(ValueError, match="label 100, expected 0 to 99"):
        read_cifar100_binary(tmp_path / "test.bin", 3)


def test_local_copy_without_a_file_names_it(no_local_copies: Path) -> None:
    (no_local_copies / "cifar-10-batches-bin").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin"):
        load_evaluation_set("cifar10", 32)


# Stand-ins.


def test_mnist_without_a_local_copy_is_the_shipped_sample() -> None:
    dataset = load_evaluation_set("mnist", 28)
    assert dataset.name == "mnist-10k"
    assert dataset.train["image"].shape == (8_500, 28, 28)
    assert dataset.size("valid") == 1_500
    assert set(np.unique(dataset.valid["label"])) == set(range(10))


@pytest.mark.parametrize(("classes", "per_class"), [(10, 20), (100, 2)])
def test_patches_are_balanced_and_the_same_every_time(classes, per_class: int) -> None:
    first, second = (load_patches(classes, 200, 100) for _ in range(2))
    assert first.name == f"patches{classes}-rgb-32x32"
    assert first.train["image"].shape == (200, 32, 32, 3)
    assert first.train["image"].dtype == first.valid["label"].dtype == np.uint8
    assert_array_equal(np.bincount(first.train["label"]), np.full(classes, per_class))
    assert_array_equal(first.train["image"], second.train["image"])


def test_no_pixel_is_both_trained_and_validated_on(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.broadcast_to(np.arange(256, dtype=np.uint8), (160, 256))  # the grey level is the column
    monkeypatch.setattr(transforms, "_photographs", lambda: iter([columns] * len(PHOTOGRAPHS)))
    train, train_label, valid, valid_label = colour_crops(1_000, 1_000, (5, 2))
    assert train.shape == valid.shape == (1_000, 32, 32, 3)
    left, right = train_label % 2 == 0, valid_label % 2 == 0  # cells of the left and of the right column
    assert train[left].max() < 96 <= valid[right].min() <= valid[right].max() < 128
    assert 128 <= train[~left].min() <= train[~left].max() < 224 <= valid[~right].min()


def test_stand_in_without_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"skimage.*celo2\[eval\]"):
        load_patches(10)


def test_unknown_evaluation_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        load_evaluation_set("cifar-10", 32)


@pytest.mark.parametrize("size", [8, 48])
def test_resize_treats_channels_alone(size: int) -> None:
    pictures = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    channels = [resize_bilinear(pictures[..., channel], size) for channel in range(3)]
    assert_array_equal(resize_bilinear(pictures, size), np.stack(channels, axis=-1))


# ImageNet.


def write_imagenet(folder: Path, **changed: np.ndarray) -> None:
    folder.mkdir()
    for split in ("train", "valid"):
        arrays: dict[str, np.ndarray] = {
            "image": np.full((2, 224, 224, 3), 7, np.uint8),
            "label": np.array([0, 999]),
        }
        for name, array in arrays.items():
            file = f"{split}_{name}"
            np.save(folder / f"{file}.npy", changed.get(file, array))


def test_imagenet_is_mapped_from_its_arrays(no_local_copies: Path) -> None:
    write_imagenet(no_local_copies / "imagenet")
    dataset = load_imagenet()
    assert dataset.name == "imagenet"
    assert isinstance(dataset.train["image"], np.memmap)
    assert_array_equal(dataset.valid["label"], [0, 999])
    assert dataset.valid["label"].dtype == np.int32


DAMAGED = {
    "floats": ("train_image", np.zeros((2, 224, 224, 3), np.float32), "float32 (2, 224, 224, 3)"),
    "smaller": ("valid_image", np.zeros((2, 64, 64, 3), np.uint8), "uint8 (2, 64, 64, 3)"),
    "too few labels": ("train_label", np.zeros(1, np.int64), "expected integers (2,)"),
    "label too large": ("valid_label", np.array([0, 1_000]), "labels from 0 to 999"),
    "objects": ("valid_label", np.array([None, 1]), "not a readable .npy file"),
}


@pytest.mark.parametrize(("name", "array", "message"), DAMAGED.values(), ids=list(DAMAGED))
def test_damaged_imagenet_is_refused(no_local_copies: Path, name: str, array, message: str) -> None:
    write_imagenet(no_local_copies / "imagenet", **{name: array})
    with pytest.raises(ValueError, match=f"{name}.npy.*{re.escape(message)}"):
        load_imagenet()


def test_imagenet_without_a_file_names_it(no_local_copies: Path) -> None:
    write_imagenet(no_local_copies / "imagenet")
    (no_local_copies / "imagenet" / "valid_label.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid_label\.npy"):
        load_imagenet()


def test_imagenet_without_a_folder_is_enlarged_crops_under_their_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("celo2.tasks.vision.image_sets._ENLARGED_PATCHES", (100, 100))
    dataset = load_imagenet()
    assert dataset.name == "patches100-rgb-224x224"
    assert dataset.train["image"].shape == (100, 224, 224, 3)
