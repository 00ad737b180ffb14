"""Made-up weights for the tests of weight files."""

from __future__ import annotations

from typing import Any

import numpy as np

from celo2.config import RuleConfig
from celo2.weights.checkpoint import Weights


def make_arrays(**config: Any) -> dict[str, np.ndarray]:
    """Distinct numbers in every array that these options need."""
    rng = np.random.default_rng(0)
    shapes = RuleConfig(**config).weight_shapes()
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def make_weights(**config: Any) -> Weights:
    """Weights that state every option."""
    return Weights(make_arrays(**config), RuleConfig(**config), provenance={"command": "a test"})
