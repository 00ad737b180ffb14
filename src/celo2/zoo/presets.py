"""Which published options fit weights: asked by `make`, and without JAX by whoever inspects a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from celo2.config import nearest_name
from celo2.zoo.names import read_shapes
from celo2.zoo.specs import PRESETS, MemberConfig
from celo2.zoo.weights import ZooWeights

__all__ = ["check_stated", "find_preset", "fitting_presets", "sized_preset"]

_ANY_SIZE = (
    "celo",
    "celo_phase1",
    "celo_adam",
    "rnn_mlp",
    "nn_adam",
    "velo",
)  # of whatever sizes weights have


def find_preset(name: str) -> MemberConfig:
    """The published options under this name.

    Raises:
        ValueError: The name is unknown; the message has the nearest.
    """
    if name not in PRESETS:
        raise ValueError(
            f"unknown optimizer {name!r}{nearest_name(name, PRESETS)} There are {', '.join(PRESETS)}."
        )
    return PRESETS[name]


def sized_preset(name: str, arrays: Mapping[str, Any], **options: Any) -> MemberConfig:
    """The preset in the sizes of these arrays, unless its own are fixed, with a caller's options.

    Raises:
        ValueError: The name is unknown, or an option out of its range.
    """
    preset = find_preset(name)
    sizes = preset.sizes_of(read_shapes(arrays)) if name in _ANY_SIZE else {}
    return dataclasses.replace(preset, **{**sizes, **options})


def check_stated(name: str, config: MemberConfig, weights: ZooWeights) -> None:
    """Refuses weights of another optimizer, or made under other options; the phases of Celo share theirs.

    Raises:
        ValueError: They are; the message says under which options they can be used.
    """
    if weights.kind != config.kind:
        raise ValueError(f"these are weights of {weights.kind!r}, asked for {name!r}.")
    for option in sorted(weights.stated - {"phase"}):
        own, asked = getattr(weights.config, option), getattr(config, option)
        if own != asked:
            raise ValueError(
                f"these {weights.kind} weights have {option}={own!r}, {name!r} has {asked!r}; say "
                f"{option}={own!r}, or take a preset that has it."
            )


def fitting_presets(weights: ZooWeights) -> list[str]:
    """The names under which `make` takes these weights without further options."""
    return [name for name in PRESETS if _fits(name, weights)]


def _fits(name: str, weights: ZooWeights) -> bool:
    try:
        check_stated(name, sized_preset(name, weights.arrays), weights)
    except ValueError:
        return False
    return True
