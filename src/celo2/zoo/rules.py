"""The optimizers by name of their kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from celo2.zoo import adafac_mlp, celo, celo_adam, nn_adam, rnn_mlp, velo
from celo2.zoo.step import Rule

__all__ = ["RULES"]

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "celo": celo.RULE,
        "celo_adam": celo_adam.RULE,
        "adafac_mlp": adafac_mlp.RULE,
        "rnn_mlp": rnn_mlp.RULE,
        "nn_adam": nn_adam.RULE,
        "velo": velo.RULE,
    }
)
