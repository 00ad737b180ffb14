"""Measures the gradients that weights encountered in meta-training, and writes the range into their files.

    python tools/gradient_range.py src/celo2/pretrained/celo2.safetensors

The arrays stay unchanged, but the file's checksum, which the model card states, changes. `ship_weights.py`
does the same for the weights that it ships.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from celo2 import Weights, load_checkpoint
from celo2.gradient_range import FIELD, QUANTILES, format_range
from celo2.meta.gradient_stats import measure_gradients
from celo2.weights.checkpoint import save_weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="weights that celo2 meta-train made")
    options = parser.parse_args()
    for path in options.files:
        weights = with_gradient_range(load_checkpoint(path))
        save_weights(path, weights)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path}: {weights.provenance[FIELD]}, sha256 {digest}", flush=True)


def with_gradient_range(weights: Weights) -> Weights:
    """Returns the weights with the range of their meta-training's gradients in the provenance."""
    found = measure_gradients(weights)
    low, high = np.quantile(np.concatenate([samples.ravel() for samples in found.values()]), QUANTILES)
    stated = {**weights.provenance, FIELD: format_range(low, high)}
    return dataclasses.replace(weights, provenance=stated)


if __name__ == "__main__":
    main()
