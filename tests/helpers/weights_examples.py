"""Made-up weights for the tests of weight files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from celo2.config import RuleConfig
from celo2.weights.checkpoint import Weights
from celo2.weights.port_format import port_name


def make_arrays(**config: Any) -> dict[str, np.ndarray]:
    """Distinct numbers in every array that these options need."""
    rng = np.random.default_rng(0)
    shapes = RuleConfig(**config).weight_shapes()
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def make_weights(**config: Any) -> Weights:
    """Weights that state every option."""
    return Weights(make_arrays(**config), RuleConfig(**config), provenance={"command": "a test"})


def port_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by the names of the public PyTorch port."""
    return {port_name(name): array for name, array in arrays.items()}


def save_port(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file as the port's network does: its own names, the framework as the only metadata."""
    safetensors.numpy.save_file(port_arrays(arrays), path, {"format": "pt"})
