"""Celo2: a learned optimizer that replaces AdamW in one line.

`import celo2` loads neither JAX nor PyTorch; the public names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from celo2._utils.lazy import import_name
from celo2._version import __version__

if TYPE_CHECKING:
    from celo2 import zoo
    from celo2.config import RuleConfig
    from celo2.harness import Harness
    from celo2.jax.dimensions import DimensionNumbers
    from celo2.jax.gradient_scale import (
        normalize_gradients,
        share_outside,
        watch_gradients,
    )
    from celo2.jax.harness.averages import average_params, averaged_params
    from celo2.jax.harness.decay import add_cautious_weight_decay
    from celo2.jax.harness.eigenbasis import in_eigenbasis
    from celo2.jax.harness.norms import floor_update_ratio, preserve_norms
    from celo2.jax.harness.orthogonalizers import orthogonalize_by
    from celo2.jax.harness.rows import normalize_rows
    from celo2.jax.routing.labels import (
        find_dimension_numbers,
        label_table,
        param_labels,
    )
    from celo2.jax.runtime import compiler_options
    from celo2.jax.transform import celo2, celo2_base, scale_by_celo2
    from celo2.newton_schulz import polar_express
    from celo2.weights.checkpoint import Weights, load_checkpoint

_HOME = {
    "Harness": "celo2.harness",
    "RuleConfig": "celo2.config",
    "Weights": "celo2.weights.checkpoint",
    "load_checkpoint": "celo2.weights.checkpoint",
    "add_cautious_weight_decay": "celo2.jax.harness.decay",
    "average_params": "celo2.jax.harness.averages",
    "averaged_params": "celo2.jax.harness.averages",
    "compiler_options": "celo2.jax.runtime",
    "floor_update_ratio": "celo2.jax.harness.norms",
    "in_eigenbasis": "celo2.jax.harness.eigenbasis",
    "normalize_rows": "celo2.jax.harness.rows",
    "orthogonalize_by": "celo2.jax.harness.orthogonalizers",
    "preserve_norms": "celo2.jax.harness.norms",
    "DimensionNumbers": "celo2.jax.dimensions",
    "normalize_gradients": "celo2.jax.gradient_scale",
    "share_outside": "celo2.jax.gradient_scale",
    "watch_gradients": "celo2.jax.gradient_scale",
    "find_dimension_numbers": "celo2.jax.routing.labels",
    "label_table": "celo2.jax.routing.labels",
    "param_labels": "celo2.jax.routing.labels",
    "polar_express": "celo2.newton_schulz",
    "celo2": "celo2.jax.transform",
    "celo2_base": "celo2.jax.transform",
    "scale_by_celo2": "celo2.jax.transform",
}

__all__ = [
    "DimensionNumbers",
    "Harness",
    "RuleConfig",
    "Weights",
    "__version__",
    "add_cautious_weight_decay",
    "average_params",
    "averaged_params",
    "celo2",
    "celo2_base",
    "compiler_options",
    "find_dimension_numbers",
    "floor_update_ratio",
    "in_eigenbasis",
    "label_table",
    "load_checkpoint",
    "normalize_gradients",
    "normalize_rows",
    "orthogonalize_by",
    "param_labels",
    "polar_express",
    "preserve_norms",
    "scale_by_celo2",
    "share_outside",
    "watch_gradients",
    "zoo",
]


_SUBMODULES = ("zoo",)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"celo2.{name}")
    value = import_name(__name__, _HOME, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
