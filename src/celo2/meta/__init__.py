"""Meta-training: persistent evolution strategies over short segments of inner training.

    >>> from celo2.meta import MetaConfig
    >>> MetaConfig(variant="celo2-base").estimator
    'pes'

`meta_train(recipe, options)` runs a recipe; `celo2 meta-train` is its command line. `Probe` trains the tasks
of a declared set with given weights or an optimizer, as `celo2 probe` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celo2._utils.extras import require
from celo2._utils.lazy import import_name

require("meta", "jax", "optax", "orbax", "rich", "tyro")

if TYPE_CHECKING:
    from celo2.meta.config import MetaConfig
    from celo2.meta.probe import Probe, ProbeConfig
    from celo2.meta.train import TrainOptions, meta_train

__all__ = ["MetaConfig", "Probe", "ProbeConfig", "TrainOptions", "meta_train"]

_HOME = {
    "MetaConfig": "celo2.meta.config",
    "Probe": "celo2.meta.probe",
    "ProbeConfig": "celo2.meta.probe",
    "TrainOptions": "celo2.meta.train",
    "meta_train": "celo2.meta.train",
}


def __getattr__(name: str) -> Any:
    return import_name(__name__, _HOME, name)
