"""The readers of published files: what they read right, and what they refuse."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from celo2.tasks.vision.formats import read_cifar10_binary, read_idx, read_svhn_mat
from helpers.published_files import cifar_bytes, idx_bytes

DAMAGES = {
    "other magic number": (lambda content: b"\x00\x00\x0d\x03" + content[4:], "begins with"),
    "other rank": (lambda content: b"\x00\x00\x08\x01" + content[4:], "begins with"),
    "empty": (lambda _: b"", "begins with"),
    "truncated header": (lambda content: content[:9], "truncated"),
    "truncated data": (lambda content: content[:-1], "truncated or damaged"),
    "trailing data": (lambda content: content + b"\x00", "truncated or damaged"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_idx_file_is_refused(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(damage(idx_bytes(np.ones((2, 3, 4)))))
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


@pytest.mark.parametrize("keep", [10, -4], ids=["inside the stream", "inside the check sum"])
def test_truncated_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.ones((2, 3, 4))))[:keep])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_idx(path, 3)


def test_idx_file_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_idx(path, 3)


def test_cifar10_binary_file_has_its_planes_in_order(tmp_path: Path) -> None:
    content, planes, labels = cifar_bytes(0)
    (tmp_path / "test_batch.bin").write_bytes(content)
    images, found = read_cifar10_binary(tmp_path / "test_batch.bin")
    assert_array_equal(images[7, 3, 5], planes[7, :, 3, 5])
    assert_array_equal(found, labels)


def test_cifar10_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"a pickle, perhaps")
    with pytest.raises(ValueError, match="binary version"):
        read_cifar10_binary(path)


def test_cifar10_label_above_nine_is_refused(tmp_path: Path) -> None:
    content, *_ = cifar_bytes(2)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(b"\xff" + content[1:])
    with pytest.raises(ValueError, match="label 255"):
        read_cifar10_binary(path)


def test_svhn_file_that_is_no_matlab_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("scipy.io", reason="SVHN's files are read with SciPy")
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ValueError, match="not a readable MATLAB file"):
        read_svhn_mat(path)
