"""Image transforms in NumPy: resizing, greyscale conversion, crops of photographs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from celo2._utils.extras import require

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

_CROP_SIDE = 32  # pixels, of photographs of 300 to 600
_CROP_BLOCK = 4  # pixels: each block of this side in a grey crop becomes one pixel


def to_grey(images: np.ndarray) -> np.ndarray:
    """Averages the channels (not luma): `(..., H, W, C)` uint8 → `(..., H, W)` float32."""
    return images.mean(axis=-1, dtype=np.float32)


def resize_bilinear(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes bilinearly with half-pixel centres and **no antialiasing**, as TensorFlow 2 does by default.

    Output pixel `i` samples the input at `(i + ½) n / size - ½`, between its two neighbours: four
    input pixels give one output pixel, however many lie in between. 28 → 8 reads the pairs
    (1, 2), (4, 5), (8, 9), … with weights (¾, ¼), (¼, ¾) in turn; 32 → 8 reads the middle 2 × 2 of each
    4 × 4 block. Antialiased resizing (Pillow, torchvision) gives different images.

    Args:
        images: `(N, H, W)` or `(N, H, W, C)`, any range.
        size: Side of the result in pixels, ≥ 1.

    Returns:
        `(N, size, size)` or `(N, size, size, C)` float32 in the range of the input, not rounded.
    """
    for axis in (1, 2):
        length = images.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, length - 1)
        fraction = (position - low).astype(np.float32).reshape(-1, *[1] * (images.ndim - axis - 1))
        below, above = (np.take(images, index, axis).astype(np.float32) for index in (low, high))
        images = below + fraction * (above - below)
    return images


def block_mean(images: np.ndarray, block: int) -> np.ndarray:
    """Averages each `block × block` square: `(N, H, W)` → `(N, H / block, W / block)` float32."""
    count, height, width = images.shape
    squares = images.reshape(count, height // block, block, width // block, block)
    return squares.mean(axis=(2, 4), dtype=np.float32)


def photograph_crops(num_train: int, num_valid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws random 32 × 32 crops of ten photographs, area-resized to 8 × 8; the class is the photograph.

    Training crops lie in the left three quarters of a photograph and validation crops in the right
    quarter, so that they share no pixel. The positions come from a fixed seed.

    Args:
        num_train: Total training crops, a multiple of ten.
        num_valid: Total validation crops, a multiple of ten.

    Returns:
        Training images `(num_train, 8, 8)` and labels, validation images and labels, all uint8,
        in shuffled order.

    Raises:
        ImportError: scikit-image, which ships the photographs, is not installed.
    """
    rng = np.random.default_rng(0)
    train, valid = [], []
    for photograph in _photographs():
        grey = to_grey(photograph) if photograph.ndim == 3 else photograph.astype(np.float32)
        for part, crops, count in zip(
            _train_and_valid(grey), (train, valid), (num_train, num_valid), strict=True
        ):
            windows = _crops(part, count // len(PHOTOGRAPHS), rng)
            crops.append(np.rint(block_mean(windows, _CROP_BLOCK)).astype(np.uint8))
    return *_shuffled(train, rng), *_shuffled(valid, rng)


def colour_crops(
    num_train: int, num_valid: int, grid: tuple[int, int] = (1, 1)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws random 32 × 32 crops of ten photographs; the class is the photograph and cell.

    Grey photographs have three equal channels. Training crops lie in the left three quarters of a cell and
    validation crops in its right quarter, so that they share no pixel. The positions come from a fixed seed.

    Args:
        num_train: Total training crops, a multiple of the number of classes.
        num_valid: Total validation crops, a multiple of the number of classes.
        grid: Rows and columns of equal cells into which each photograph is cut; there are
            `10 · rows · columns` classes. Cells must be at least 32 pixels high and 128 wide.

    Returns:
        Training images `(num_train, 32, 32, 3)` and labels, validation images and labels, all uint8,
        in shuffled order.

    Raises:
        ImportError: scikit-image, which ships the photographs, is not installed.
    """
    rng = np.random.default_rng(0)
    num_classes = len(PHOTOGRAPHS) * grid[0] * grid[1]
    train, valid = [], []
    for photograph in _photographs():
        colour = photograph if photograph.ndim == 3 else np.repeat(photograph[..., None], 3, axis=-1)
        for cell in _cells(colour, grid):
            for part, crops, count in zip(
                _train_and_valid(cell), (train, valid), (num_train, num_valid), strict=True
            ):
                crops.append(_crops(part, count // num_classes, rng))
    return *_shuffled(train, rng), *_shuffled(valid, rng)


def _photographs() -> Iterator[np.ndarray]:
    """Yields the photographs, uint8, `(H, W)` or `(H, W, 3)`."""
    require("eval", "skimage")
    from skimage import data

    return (getattr(data, name)() for name in PHOTOGRAPHS)


def _cells(picture: np.ndarray, grid: tuple[int, int]) -> list[np.ndarray]:
    rows, columns = grid
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    return [
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(rows)
        for column in range(columns)
    ]


def _train_and_valid(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits a picture into the left three quarters, for training, and the right quarter, for validation."""
    border = picture.shape[1] * 3 // 4
    return picture[:, :border], picture[:, border:]


def _crops(picture: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws random crops: `(H, W, ...)` → `(count, 32, 32, ...)`."""
    shape = (_CROP_SIDE, _CROP_SIDE, *picture.shape[2:])
    windows = np.lib.stride_tricks.sliding_window_view(picture, shape)
    windows = windows.reshape(
        *windows.shape[:2], *shape
    )  # without the axes of length one, which a crop covers completely
    top = rng.integers(0, windows.shape[0], count)
    left = rng.integers(0, windows.shape[1], count)
    return windows[top, left]


def _shuffled(classes: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(classes), dtype=np.uint8), [len(crops) for crops in classes])
    order = rng.permutation(len(labels))
    return np.concatenate(classes)[order], labels[order]
