"""What a recipe's variant makes: finished weights of Celo2, or of one of its predecessors.

Meta-training itself knows theta as arrays by name. What is particular to a variant is here, in `inner` (the
optimizer that theta defines) and in `start` (theta before the first iteration).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from celo2 import weights as celo2_weights
from celo2.meta.config import MetaConfig
from celo2.weights import Weights
from celo2.zoo import weights as zoo_weights
from celo2.zoo.specs import Celo
from celo2.zoo.weights import ZooWeights

__all__ = ["AnyWeights", "load_weights", "make_weights", "save_weights"]

AnyWeights = Weights | ZooWeights


def make_weights(
    arrays: Mapping[str, np.ndarray], config: MetaConfig, provenance: Mapping[str, str]
) -> AnyWeights:
    """Theta of a recipe as finished weights."""
    if config.member is None:
        return Weights(arrays, config.rule, provenance)
    return ZooWeights(arrays, config.member, provenance, frozenset(vars(config.member)))


def save_weights(path: str | os.PathLike[str], weights: AnyWeights) -> None:
    """Writes weights of either kind; see `celo2.weights.save_weights`."""
    if isinstance(weights, ZooWeights):
        zoo_weights.save_weights(path, weights)
    else:
        celo2_weights.save_weights(path, weights)


def load_weights(source: str, config: MetaConfig) -> AnyWeights:
    """Weights that a recipe can go on from.

    Raises:
        ValueError: They are another variant's, or have other options; Celo's phases share theirs.
        OSError: The file cannot be read.
    """
    if config.member is None:
        weights = celo2_weights.load_checkpoint(source, orthogonalize=config.rule.orthogonalize)
        if weights.config != config.rule:
            raise ValueError(f"{source} has other options than the recipe: {weights.config}.")
        return weights
    phase = {"phase": config.member.phase} if isinstance(config.member, Celo) else {}
    weights = zoo_weights.load_weights(source)
    if weights.kind != config.member.kind:
        raise ValueError(f"{source} has weights of {weights.kind!r}, expected {config.member.kind!r}.")
    weights = zoo_weights.load_weights(source, **phase)
    if weights.config != config.member:
        raise ValueError(f"{source} has other options than the recipe: {weights.config}.")
    return weights
