"""Learned optimizers that preceded Celo2 (Celo, VeLO and their relatives) as Optax transforms.

`load_weights` and `save_weights` read and write their weight files, `make` builds an optimizer by its
published name, and `init_theta` initialises meta-parameters for meta-training.

    theta = celo2.zoo.load_weights("theta.state")  # or a hub repository such as "amoudgl/celo"
    tx = celo2.zoo.make("celo", weights=theta, num_steps=1000)
    updates, state = tx.update(grads, state, params, value=loss)

Weight files are read without JAX; `make` and `init_theta` import it on first use. See docs/zoo.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from celo2.zoo.specs import PRESETS
from celo2.zoo.weights import ZooWeights, load_weights, save_weights

if TYPE_CHECKING:
    from celo2.zoo.registry import init_theta, make

__all__ = ["PRESETS", "ZooWeights", "init_theta", "load_weights", "make", "save_weights"]

_LAZY = ("init_theta", "make")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'celo2.zoo' has no attribute {name!r}")
    return getattr(importlib.import_module("celo2.zoo.registry"), name)
