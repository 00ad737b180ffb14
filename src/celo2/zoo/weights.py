"""Loads the zoo's weights and matches them to presets; `celo2.weights` reads and writes the files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from celo2.config import nearest_name
from celo2.weights import checkpoint
from celo2.weights.checkpoint import ZooWeights
from celo2.weights.schema import read_shapes
from celo2.zoo.specs import PRESETS, MemberConfig


def load_weights(source: str | os.PathLike[str], **options: Any) -> ZooWeights:
    """Loads weights of an optimizer of the zoo.

    Args:
        source: A path to safetensors of this package, to an upstream `theta.state`, or to a folder that
            holds one; otherwise a hub repository `"owner/name"` (needs the `hub` extra).
        **options: Options of the optimizer that the file does not state, such as `ff_mult=100`.

    Raises:
        TypeError: The optimizer has no such option.
        ValueError: The file is not a weight file of the zoo, is damaged, or states other options.
        FileNotFoundError, ConnectionError, ImportError: As in `celo2.load_checkpoint`.
    """
    return checkpoint.load_weights(source, ZooWeights, **options)


# Presets that adopt the sizes of the weights.
_ANY_SIZE = ("celo", "celo_phase1", "celo_adam", "rnn_mlp", "nn_adam", "velo")


def find_preset(name: str) -> MemberConfig:
    """Returns the published options of a preset.

    Raises:
        ValueError: The name is unknown; the message suggests the nearest.
    """
    if name not in PRESETS:
        raise ValueError(
            f"unknown optimizer {name!r}{nearest_name(name, PRESETS)} There are {', '.join(PRESETS)}."
        )
    return PRESETS[name]


def sized_preset(name: str, arrays: Mapping[str, Any], **options: Any) -> MemberConfig:
    """Returns a preset with the sizes of these arrays, unless its sizes are fixed, and the caller's options.

    Raises:
        ValueError: The name is unknown, or an option is out of its range.
    """
    preset = find_preset(name)
    sizes = preset.sizes_of(read_shapes(arrays)) if name in _ANY_SIZE else {}
    return dataclasses.replace(preset, **{**sizes, **options})


def check_stated(name: str, config: MemberConfig, weights: ZooWeights) -> None:
    """Checks that weights belong to this optimizer and options; the phases of Celo share weights.

    Raises:
        ValueError: They do not; the message states the options under which they can be used.
    """
    if weights.kind != config.kind:
        raise ValueError(f"these are weights of {weights.kind!r}, asked for {name!r}.")
    for option in sorted(weights.stated - config.deployment_options):
        own, asked = getattr(weights.config, option), getattr(config, option)
        if own != asked:
            raise ValueError(
                f"these {weights.kind} weights have {option}={own!r}, {name!r} has {asked!r}; say "
                f"{option}={own!r}, or take a preset that has it."
            )


def fitting_presets(weights: ZooWeights) -> list[str]:
    """Returns the names under which `make` accepts these weights without further options."""
    return [name for name in PRESETS if _fits(name, weights)]


def best_preset(weights: ZooWeights) -> str:
    """Returns the name under which `make` accepts these weights without further options.

    Raises:
        ValueError: No preset fits, or several fit that differ in an option not stated by the weights.
    """
    names, kind = fitting_presets(weights), weights.kind
    free = {option: getattr(weights.config, option) for option in weights.config.deployment_options}
    meanings = {sized_preset(name, weights.arrays, **free) for name in names}
    if len(meanings) > 1:
        raise ValueError(f"these {kind} weights do not say which of {', '.join(names)} they were trained as.")
    if not names:
        raise ValueError(f"these {kind} weights have options that no preset has: {weights.config}.")
    return kind if kind in names else names[0]


def _fits(name: str, weights: ZooWeights) -> bool:
    try:
        check_stated(name, sized_preset(name, weights.arrays), weights)
    except ValueError:
        return False
    return True
