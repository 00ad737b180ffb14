"""Which options of a recipe go together; each function raises a ValueError where they do not."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celo2.meta.config import MetaConfig

__all__ = ["DECAYING", "check_frozen", "check_outer", "check_variant"]

DECAYING = ("adamw", "lion")  # outer optimizers that have a weight decay
_OF_THE_RATE = ("inner_learning_rate", "rate_spread", "rate_units", "inner_schedule", "adamw_lr_scale")


def check_outer(config: MetaConfig) -> None:
    """The outer optimizer, its weight decay and its schedule."""
    if config.outer_weight_decay and config.outer_optimizer not in DECAYING:
        raise ValueError(
            f"outer_weight_decay belongs to {DECAYING}, got outer_optimizer={config.outer_optimizer!r}; "
            "choose one of them, or no decay."
        )
    if config.outer_decay_steps and config.outer_decay_steps <= config.outer_warmup:
        raise ValueError(
            "outer_decay_steps counts from the first iteration and must be above outer_warmup, got "
            f"{config.outer_decay_steps} and {config.outer_warmup}."
        )


def check_variant(config: MetaConfig) -> None:
    """A variant's phases, and what has no meaning for a predecessor."""
    phases = (0, 1, 2) if config.variant == "celo" else (0,)
    if config.phase not in phases:
        raise ValueError(f"phase must be one of {phases} for {config.variant!r}, got {config.phase!r}.")
    if config.member is None:
        return
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in _OF_THE_RATE:
        if getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{config.variant!r} sets its own step sizes, so {name} has no meaning; leave it out "
                f"(got {getattr(config, name)!r})."
            )
    if config.rule_options:
        raise ValueError(f"rule_options are Celo2's, not those of {config.variant!r}; leave them out.")
    if config.start == "adam":
        raise ValueError(f"only Celo2 can start at Adam, not {config.variant!r}; say random, or weights.")


def check_frozen(config: MetaConfig) -> None:
    """Frozen arrays are there, and leave some to train."""
    names = list(config.weight_shapes())
    for pattern in config.frozen:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"frozen: no weight array is named {pattern!r}; there are {', '.join(names)}.")
    if len(config.frozen_names) == len(names):
        raise ValueError(f"frozen: {config.frozen} leave nothing to train; free at least one weight array.")
