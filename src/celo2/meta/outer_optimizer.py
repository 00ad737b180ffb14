"""The optimizer of theta: Optax's, by name, with the recipe's schedule and clipping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import optax

from celo2.meta.config import MetaConfig

__all__ = ["CUSTOM", "OUTER_OPTIMIZERS", "make_outer_optimizer"]

FINAL_RATE = 0.1  # share of the outer learning rate that a cosine ends at
CUSTOM = "custom"  # the name in the recipe of a run whose optimizer was given in Python

Factory = Callable[[optax.ScalarOrSchedule, float], optax.GradientTransformation]

OUTER_OPTIMIZERS: Mapping[str, Factory] = MappingProxyType(
    {
        "adamw": lambda rate, decay: optax.adamw(rate, weight_decay=decay),
        "lion": lambda rate, decay: optax.lion(rate, weight_decay=decay),
        "adam": lambda rate, _: optax.adam(rate),
        "nadam": lambda rate, _: optax.nadam(rate),
        "radam": lambda rate, _: optax.radam(rate),
        "amsgrad": lambda rate, _: optax.amsgrad(rate),
        "adabelief": lambda rate, _: optax.adabelief(rate),
        "yogi": lambda rate, _: optax.yogi(rate),
        "adagrad": lambda rate, _: optax.adagrad(rate),
        "rmsprop": lambda rate, _: optax.rmsprop(rate),
        "sgd": lambda rate, _: optax.sgd(rate),
    }
)


def make_outer_optimizer(
    config: MetaConfig, given: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """The optimizer that the recipe names: clipping, then Optax's with the recipe's schedule.

    Args:
        config: The recipe.
        given: Any chain, with its own learning rate, schedule and clipping; the recipe's are not applied.

    Raises:
        ValueError: A chain is given and the recipe's `outer_optimizer` is not "custom", or the other way
            round.
    """
    if (given is not None) != (config.outer_optimizer == CUSTOM):
        raise ValueError(
            f"outer_optimizer={config.outer_optimizer!r} and {'no' if given is None else 'a'} chain given; "
            f"a recipe with {CUSTOM!r} needs meta_train(config, options, outer_optimizer=chain) in Python, "
            "any other none."
        )
    if given is not None:
        return given
    peak = config.outer_learning_rate
    schedule: optax.ScalarOrSchedule = peak
    if config.outer_decay_steps:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, peak, config.outer_warmup, config.outer_decay_steps, FINAL_RATE * peak
        )
    elif config.outer_warmup:
        schedule = optax.linear_schedule(0.0, peak, config.outer_warmup)
    optimizer = OUTER_OPTIMIZERS[config.outer_optimizer](schedule, config.outer_weight_decay)
    return (
        optax.chain(optax.clip_by_global_norm(config.outer_clip), optimizer)
        if config.outer_clip
        else optimizer
    )
