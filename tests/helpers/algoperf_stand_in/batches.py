"""Fake batches with something to learn, as NumPy arrays: token sequences and small images.

Sizes coincide, so that a network has matrices of few shapes: each shape is compiled by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np

VOCABULARY, LENGTH, WIDTH, HEADS, HIDDEN = 24, 8, 16, 2, 16
CLASSES, CHANNELS, SIDE, FILTERS = 10, 8, 6, (8, 8)
COUNT, BATCH_SIZE = 4, 8


def make_tokens(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Sequences in which each token follows from the one before; the last positions are padding."""
    rng = np.random.default_rng(seed)
    follows = rng.permutation(VOCABULARY)
    batches = []
    for _ in range(COUNT):
        tokens = [rng.integers(0, VOCABULARY, BATCH_SIZE)]
        for _ in range(LENGTH):
            tokens.append(follows[tokens[-1]])
        rows = np.stack(tokens, axis=1).astype(np.int32)
        weights = np.ones((BATCH_SIZE, LENGTH), np.float32)
        weights[:, -2:] = 0.0
        batches.append({"inputs": rows[:, :-1], "targets": rows[:, 1:], "weights": weights})
    return cycle(batches)


def make_images(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Noisy images of one pattern for each class, channels last, without a mask."""
    rng = np.random.default_rng(seed)
    patterns = rng.standard_normal((CLASSES, SIDE, SIDE, CHANNELS))
    batches = []
    for _ in range(COUNT):
        targets = rng.integers(0, CLASSES, BATCH_SIZE).astype(np.int32)
        noise = rng.standard_normal((BATCH_SIZE, SIDE, SIDE, CHANNELS))
        images = (patterns[targets] + 0.5 * noise).astype(np.float32)
        batches.append({"inputs": images, "targets": targets})
    return cycle(batches)
