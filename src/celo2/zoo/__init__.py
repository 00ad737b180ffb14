"""Learned optimizers that preceded Celo2 (Celo, VeLO and their relatives) as Optax transforms.

`load_weights` and `save_weights` read and write their weight files, `make` builds an optimizer by its
published name, and `init_theta` initialises meta-parameters for meta-training.

    theta = celo2.zoo.load_weights("theta.state")  # or a hub repository such as "amoudgl/celo"
    tx = celo2.zoo.make("celo", weights=theta, num_steps=1000)
    updates, state = tx.update(grads, state, params, value=loss)

Weight files are read without JAX; `make` and `init_theta` import it on first use. See docs/zoo.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celo2._utils.lazy import import_name
from celo2.zoo.specs import PRESETS

if TYPE_CHECKING:
    from celo2.weights.checkpoint import ZooWeights, save_weights
    from celo2.zoo.registry import init_theta, make
    from celo2.zoo.weights import load_weights

__all__ = ["PRESETS", "ZooWeights", "init_theta", "load_weights", "make", "save_weights"]

# Imported on first use: `celo2.weights` imports the specs of this package.
_HOME = {
    "ZooWeights": "celo2.weights.checkpoint",
    "save_weights": "celo2.weights.checkpoint",
    "load_weights": "celo2.zoo.weights",
    "init_theta": "celo2.zoo.registry",
    "make": "celo2.zoo.registry",
}


def __getattr__(name: str) -> Any:
    return import_name(__name__, _HOME, name)
