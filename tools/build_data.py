"""Builds the arrays shipped in `src/celo2/data` from the project's reference copies.

    python tools/build_data.py [--source ../shared/data] [--out src/celo2/data]

The source folder holds `images28.npz` and `images8.npz` (uint8, `<set>_{train,test}_{x,y}`). Each output file
has two arrays, `image` (uint8) and `label` (uint8), with examples in their published order;
`celo2.tasks.vision.datasets` splits them. NumPy stamps every member of an archive with the same date, so the
same input gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """Reads the command line and writes the three archives."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="Build the arrays shipped with celo2.")
    parser.add_argument("--source", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=root / "src" / "celo2" / "data")
    arguments = parser.parse_args()
    with np.load(arguments.source / "images28.npz", allow_pickle=False) as images28:
        for name, source in (("fashion_mnist", "fashion_mnist_test"), ("mnist", "mnist")):
            image, label = (images28[f"{source}_{axis}"] for axis in "xy")
            write(arguments.out / f"{name}_sample_10k.npz", image, label)
    with np.load(arguments.source / "images8.npz", allow_pickle=False) as images8:
        image, label = (
            np.concatenate([images8[f"digits_{split}_{axis}"] for split in ("train", "test")])
            for axis in "xy"
        )
    write(arguments.out / "digits_8x8.npz", image, label)


def write(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """Writes one archive and prints its size."""
    if image.dtype != np.uint8 or label.dtype != np.uint8 or len(image) != len(label):
        raise ValueError(f"{path.name}: expected uint8 images and as many uint8 labels.")
    np.savez_compressed(path, image=image, label=label)
    print(f"{path.name}: {image.shape}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
