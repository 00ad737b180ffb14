"""The data sets: sizes, the published resize, and files that are missing or damaged."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.vision import datasets
from celo2.tasks.vision.datasets import (
    find_folder,
    load_fashion_mnist,
    load_fashion_mnist_8x8,
    load_image_sets,
)
from celo2.tasks.vision.transforms import block_mean, resize_bilinear, to_grey
from helpers.published_files import cifar_bytes, idx_bytes


@pytest.fixture(autouse=True)
def no_local_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but the folder returned, `$CELO2_DATA`."""
    monkeypatch.setenv("CELO2_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(datasets, "_DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path / "data"


def write_fashion_mnist(folder: Path, num_train: int = 30, num_test: int = 10) -> np.ndarray:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_train + num_test, 28, 28))
    for prefix, part in (("train", slice(num_train)), ("t10k", slice(num_train, None))):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images[part])))
        labels = np.arange(len(images[part])) % 10
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))  # plain files are read too
    return images


# The resize. Hand-worked: the pixel pairs and weights of the published recipe.


def test_resize_28_to_8_mixes_the_published_pixel_pairs() -> None:
    ramp = np.zeros((28, 28, 28), np.uint8)  # image i is lit in column i: the output is a column of weights
    ramp[np.arange(28), :, np.arange(28)] = 1
    weights = resize_bilinear(ramp, 8)[:, 0, :].T  # output column × input column
    expected = np.zeros((8, 28))
    for output, (low, high) in enumerate(
        [(1, 2), (4, 5), (8, 9), (11, 12), (15, 16), (18, 19), (22, 23), (25, 26)]
    ):
        expected[output, low], expected[output, high] = (0.75, 0.25) if output % 2 == 0 else (0.25, 0.75)
    assert_array_equal(weights, expected)


def test_resize_32_to_8_is_the_mean_of_the_middle_pixels_of_each_block() -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    middle = images.reshape(3, 8, 4, 8, 4)[:, :, 1:3, :, 1:3].mean(axis=(2, 4))
    assert_array_equal(resize_bilinear(images, 8), middle)


def test_resize_to_the_same_size_changes_nothing() -> None:
    images = np.random.default_rng(2).integers(0, 256, (2, 8, 8)).astype(np.uint8)
    assert_array_equal(resize_bilinear(images, 8), images)


def test_grey_is_the_plain_mean_of_the_channels() -> None:
    assert_allclose(to_grey(np.array([[[0, 30, 90], [255, 255, 255]]], np.uint8)), [[40.0, 255.0]])


def test_block_mean_averages_squares() -> None:
    assert_array_equal(block_mean(np.arange(16).reshape(1, 4, 4), 2), [[[2.5, 4.5], [10.5, 12.5]]])


# Fashion-MNIST.


def test_fashion_mnist_without_a_local_copy_is_the_sample_under_its_own_name() -> None:
    dataset = load_fashion_mnist()
    assert dataset.name == "fashion-mnist-sample-10k"
    assert dataset.train["image"].shape == (9_000, 28, 28)
    assert dataset.train["image"].dtype == np.uint8
    assert (dataset.size("train"), dataset.size("valid")) == (9_000, 1_000)
    labels = np.concatenate([dataset.train["label"], dataset.valid["label"]])
    assert_array_equal(np.bincount(labels), np.full(10, 1_000))


def test_fashion_mnist_prefers_a_local_copy(no_local_copies: Path) -> None:
    images = write_fashion_mnist(no_local_copies / "fashion-mnist")
    dataset = load_fashion_mnist()
    assert dataset.name == "fashion-mnist"
    assert_array_equal(dataset.train["image"], images[:30])
    assert_array_equal(dataset.valid["image"], images[30:])
    assert load_fashion_mnist("sample").name == "fashion-mnist-sample-10k"


def test_fashion_mnist_full_without_a_local_copy_says_where_to_put_it() -> None:
    with pytest.raises(FileNotFoundError, match="CELO2_DATA/fashion-mnist"):
        load_fashion_mnist("full")


def test_fashion_mnist_refuses_an_unknown_preference() -> None:
    with pytest.raises(ValueError, match="'best'"):
        load_fashion_mnist("best")  # pyright: ignore[reportArgumentType]


def test_fashion_mnist_copy_without_a_file_names_it(no_local_copies: Path) -> None:
    write_fashion_mnist(no_local_copies / "fashion-mnist")
    (no_local_copies / "fashion-mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load_fashion_mnist()


def test_fashion_mnist_copy_with_too_few_labels_is_refused(no_local_copies: Path) -> None:
    folder = no_local_copies / "fashion-mnist"
    write_fashion_mnist(folder)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(29)))
    with pytest.raises(ValueError, match="29 labels"):
        load_fashion_mnist()


def test_find_folder_looks_in_the_cache_after_the_environment(no_local_copies: Path) -> None:
    assert find_folder("fashion-mnist") is None
    cached = Path.home() / ".cache" / "celo2" / "fashion-mnist"
    cached.mkdir(parents=True)
    assert find_folder("fashion-mnist") == cached
    own = no_local_copies / "fashion-mnist"
    own.mkdir(parents=True)
    assert find_folder("fashion-mnist") == own


# The 8 × 8 sets.


def test_resized_sets_equal_the_reference_arrays_exactly(shared: Path) -> None:
    sets = load_image_sets(["mnist", "digits"])
    sample = load_fashion_mnist_8x8("sample")
    with np.load(shared / "data" / "images8.npz", allow_pickle=False) as reference:
        for name, dataset in sets.items():
            assert_array_equal(dataset.train["image"], reference[f"{name}_train_x"])
            assert_array_equal(dataset.valid["label"], reference[f"{name}_test_y"])
        resized = np.concatenate([sample.train["image"], sample.valid["image"]])
        assert_array_equal(resized, reference["fashion_mnist_test_x"])  # no grey level differs


def test_full_fashion_mnist_resized_equals_the_reference_exactly(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_DEBIAN_FOLDER", Path("/usr/share/datasets"))
    if find_folder("fashion-mnist") is None:
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    dataset = load_fashion_mnist_8x8("full")
    with np.load(shared / "data" / "images8.npz", allow_pickle=False) as reference:
        assert_array_equal(dataset.train["image"], reference["fashion_mnist_train_x"])
        assert_array_equal(dataset.train["label"], reference["fashion_mnist_train_y"])


SET_SIZES = {
    "fashion-mnist": ("fashion-mnist-sample-10k-8x8", 9_000, 1_000),
    "mnist": ("mnist-10k-8x8", 8_500, 1_500),
    "digits": ("digits-8x8", 1_500, 297),
}


def check_set(dataset, name: str, num_train: int, num_valid: int) -> None:
    assert dataset.name == name
    for split, count in (("train", num_train), ("valid", num_valid)):
        arrays = getattr(dataset, split)
        assert arrays["image"].shape == (count, 8, 8)
        assert arrays["image"].dtype == arrays["label"].dtype == np.uint8
        assert set(np.unique(arrays["label"])) == set(range(10))
        assert arrays["image"].max() > 200  # 0 to 255, not 0 to 16


def test_image_sets_have_their_sizes() -> None:
    for name, dataset in load_image_sets(list(SET_SIZES)).items():
        check_set(dataset, *SET_SIZES[name])


def test_patches_are_balanced_and_the_same_every_time() -> None:
    pytest.importorskip("skimage", reason="the patches are cut from scikit-image's photographs")
    first, second = (load_image_sets(["patches"])["patches"] for _ in range(2))
    check_set(first, "patches-8x8", 30_000, 5_000)
    assert_array_equal(np.bincount(first.train["label"]), np.full(10, 3_000))
    assert_array_equal(np.bincount(first.valid["label"]), np.full(10, 500))
    assert_array_equal(first.train["image"], second.train["image"])


def test_patches_without_scikit_image_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"celo2\[eval\]"):
        load_image_sets(["patches"])


def test_unknown_image_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        load_image_sets(["cifar-10"])


# The published sets that cannot be shipped.


def test_cifar10_grey_8x8_from_a_local_copy(no_local_copies: Path) -> None:
    folder = no_local_copies / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    content, planes, labels = cifar_bytes(1)
    for name in (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(content)
    dataset = load_image_sets(["cifar10"])["cifar10"]
    assert dataset.name == "cifar10-grey-8x8"
    assert (dataset.size("train"), dataset.size("valid")) == (50_000, 10_000)
    middle = planes[0].mean(axis=0).reshape(8, 4, 8, 4)[:, 1:3, :, 1:3].mean(axis=(1, 3))
    assert np.abs(dataset.valid["image"][0] - middle).max() <= 0.5 + 1e-3  # rounding, of float32 means
    assert_array_equal(dataset.valid["label"], labels)


def test_svhn_grey_8x8_from_a_local_copy(no_local_copies: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="SVHN's files are read with SciPy")
    folder = no_local_copies / "svhn"
    folder.mkdir(parents=True)
    images = np.random.default_rng(3).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    labels = np.arange(1, 21).reshape(-1, 1) % 10 + 1  # 1 to 10, as published
    for name, count in (("train", 20), ("test", 5)):
        io.savemat(folder / f"{name}_32x32.mat", {"X": images[..., :count], "y": labels[:count]})
    dataset = load_image_sets(["svhn"])["svhn"]
    assert dataset.name == "svhn-grey-8x8"
    assert dataset.train["image"].shape == (20, 8, 8)
    assert_array_equal(dataset.valid["label"], labels[:5, 0] % 10)
    middle = images[1:3, 1:3, :, 4].mean()
    assert abs(dataset.train["image"][4, 0, 0] - middle) <= 0.5 + 1e-3  # rounding, of float32 means


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-bin"), ("svhn", "svhn")])
def test_published_set_without_a_local_copy_says_where_to_put_it(name: str, folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=folder):
        load_image_sets([name])
