"""Readers for the published file formats of the image sets; none uses pickle.

Each reader checks its input; errors state the file, what was found, and what was expected.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from celo2._utils.extras import require

_IDX_UINT8 = 0x08  # the third byte of an IDX file's magic number: unsigned bytes
_CIFAR_PIXELS = 3 * 32 * 32  # the red, green and blue planes, after the labels
_CIFAR10_RECORDS = 10_000  # in every file of the set


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes (the format of MNIST and Fashion-MNIST).

    Args:
        path: The file, gzipped if its name ends in `.gz`.
        rank: Required number of dimensions: 3 for images, 1 for labels.

    Returns:
        A uint8 array of that rank.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged: the magic number or the number of bytes is wrong.
    """
    content = _read_bytes(path)
    expected = bytes((0, 0, _IDX_UINT8, rank))
    if content[:4] != expected:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes with {rank} dimension(s): it begins with "
            f"0x{content[:4].hex()}, expected 0x{expected.hex()}; fetch it again."
        )
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, the header alone has {start}.")
    shape = struct.unpack(f">{rank}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} is truncated or damaged: {len(content) - start} bytes of data, expected "
            f"{math.prod(shape)} for shape {shape}; fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar10_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads one file of CIFAR-10's binary version.

    Returns:
        Images `(10000, 32, 32, 3)` and labels `(10000,)`, uint8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another size, or a label above 9.
    """
    return _read_cifar(path, _CIFAR10_RECORDS, num_labels=1, classes=10)


def read_cifar100_binary(path: Path, num_records: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads one file of CIFAR-100's binary version, with the fine labels.

    Args:
        path: `train.bin` or `test.bin`.
        num_records: Required number of images: 50,000 or 10,000.

    Returns:
        Images `(num_records, 32, 32, 3)` and labels `(num_records,)`, 0 to 99, uint8.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another size, or a label above 99.
    """
    return _read_cifar(path, num_records, num_labels=2, classes=100)


def _read_cifar(path: Path, records: int, num_labels: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads records of labels, of which the last is used, and pixels."""
    content = _read_bytes(path)
    length = num_labels + _CIFAR_PIXELS
    if len(content) != length * records:
        raise ValueError(
            f"{path} has {len(content)} bytes, expected {length * records} ({records} records of "
            f"{length}); it must be of the binary version, cifar-{classes}-binary.tar.gz."
        )
    rows = np.frombuffer(content, np.uint8).reshape(records, length)
    images = rows[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, _check_labels(rows[:, num_labels - 1], path, classes)


def read_svhn_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads one file of SVHN's cropped digits (`train_32x32.mat`); its label 10 is the digit 0.

    Returns:
        Images `(N, 32, 32, 3)` and labels `(N,)`, uint8.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: SciPy is not installed.
        ValueError: The file is damaged or does not belong to this set.
    """
    require("eval", "scipy")
    from scipy import io

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        content = io.loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].ravel()
    except (KeyError, ValueError, TypeError, EOFError, OSError, NotImplementedError, zlib.error) as error:
        raise ValueError(f"{path} is not a readable MATLAB file with arrays X and y: {error}") from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise ValueError(
            f"{path}: X is {images.dtype} of shape {images.shape}, expected uint8 (32, 32, 3, {len(labels)})."
        )
    return images.transpose(3, 0, 1, 2), _check_labels(labels % 10, path, 10)


def _read_bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist; the folder {path.parent} is incomplete.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}; fetch it again.") from error


def _check_labels(labels: np.ndarray, path: Path, classes: int) -> np.ndarray:
    if labels.max(initial=0) >= classes:
        raise ValueError(f"{path} is damaged: label {labels.max()}, expected 0 to {classes - 1}.")
    return labels.astype(np.uint8)
