"""Files of the published image sets, as their publishers would have written them."""

from __future__ import annotations

import struct

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def cifar_bytes(seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (10_000, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records.tobytes(), records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
