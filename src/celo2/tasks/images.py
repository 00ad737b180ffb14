"""Image arithmetic of the meta-training sets, in NumPy: resize, grey, crops of photographs."""

from __future__ import annotations

import numpy as np

from celo2._extras import require

__all__ = ["PHOTOGRAPHS", "block_mean", "photograph_crops", "resize_bilinear", "to_grey"]

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "immunohistochemistry",
)
"""Ten PNG photographs inside the scikit-image wheel (lossless, hence the same on every machine)."""

_CROP_BLOCK = 4  # a crop is 8 × 8 blocks of this many pixels: 32 × 32 of a photograph of 300 to 600


def to_grey(images: np.ndarray) -> np.ndarray:
    """The plain mean of the channels (not luma): `(..., H, W, C)` uint8 → `(..., H, W)` float32."""
    return images.mean(axis=-1, dtype=np.float32)


def resize_bilinear(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize with half-pixel centres and **no antialiasing**, as TensorFlow 2's default.

    Output pixel `i` samples the input at `(i + ½) n / size - ½`, between its two neighbours: four
    pixels of the input make one of the output, however many lie between. 28 → 8 reads the pairs
    (1, 2), (4, 5), (8, 9), … with weights (¾, ¼), (¼, ¾) in turn; 32 → 8 the middle 2 × 2 of each
    4 × 4 block. Antialiased resizing (Pillow, torchvision) gives other images.

    Args:
        images: `(N, H, W)`, any range.
        size: Side of the result in pixels, ≥ 1.

    Returns:
        `(N, size, size)` float32 in the range of the input, not rounded.
    """
    for axis in (1, 2):
        length = images.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, length - 1)
        fraction = (position - low).astype(np.float32).reshape((-1, 1) if axis == 1 else (-1,))
        below, above = (np.take(images, index, axis).astype(np.float32) for index in (low, high))
        images = below + fraction * (above - below)
    return images


def block_mean(images: np.ndarray, block: int) -> np.ndarray:
    """The mean of each `block × block` square: `(N, H, W)` → `(N, H / block, W / block)` float32."""
    count, height, width = images.shape
    squares = images.reshape(count, height // block, block, width // block, block)
    return squares.mean(axis=(2, 4), dtype=np.float32)


def photograph_crops(num_train: int, num_valid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random 32 × 32 crops of ten photographs, resized by area to 8 × 8; the class is the photograph.

    Training crops lie in the left three quarters of a photograph and validation crops in the right
    quarter, so that no pixel is in both. The positions come from a fixed seed.

    Args:
        num_train: Training crops in all, a multiple of ten.
        num_valid: Validation crops in all, a multiple of ten.

    Returns:
        Training images `(num_train, 8, 8)` and labels, validation images and labels, all uint8,
        in shuffled order.

    Raises:
        ImportError: scikit-image, which ships the photographs, is not installed.
    """
    require("eval", "skimage")
    from skimage import data

    rng = np.random.default_rng(0)
    train, valid = [], []
    for name in PHOTOGRAPHS:
        photograph = getattr(data, name)()
        grey = to_grey(photograph) if photograph.ndim == 3 else photograph.astype(np.float32)
        border = grey.shape[1] * 3 // 4
        train.append(_crops(grey[:, :border], num_train // len(PHOTOGRAPHS), rng))
        valid.append(_crops(grey[:, border:], num_valid // len(PHOTOGRAPHS), rng))
    return *_shuffled(train, rng), *_shuffled(valid, rng)


def _crops(picture: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    side = 8 * _CROP_BLOCK
    windows = np.lib.stride_tricks.sliding_window_view(picture, (side, side))
    top = rng.integers(0, windows.shape[0], count)
    left = rng.integers(0, windows.shape[1], count)
    return np.rint(block_mean(windows[top, left], _CROP_BLOCK)).astype(np.uint8)


def _shuffled(classes: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(classes), dtype=np.uint8), [len(crops) for crops in classes])
    order = rng.permutation(len(labels))
    return np.concatenate(classes)[order], labels[order]
