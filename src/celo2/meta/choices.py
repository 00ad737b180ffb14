"""What the options of a recipe can be, by name."""

from __future__ import annotations

from typing import Literal, get_args

from celo2.tasks.augmentation import LEVELS

__all__ = [
    "CHOICES",
    "Estimator",
    "LossDifference",
    "LossScale",
    "MetaLoss",
    "OuterOptimizer",
    "RateUnits",
    "Schedule",
    "UnrollLaw",
    "Variant",
]

Variant = Literal[
    "celo2",
    "celo2-base",
    "celo",
    "celo_adam",
    "adafac_mlp",
    "rnn_mlp",
    "nn_adam",
    "velo",
    "velo_s",
    "velo_4000",
]
RateUnits = Literal["stored", "network"]
Schedule = Literal["constant", "cosine"]
Estimator = Literal["pes", "truncated-es", "full-es", "noise-reuse-es"]
LossScale = Literal["linear", "log"]
UnrollLaw = Literal["log-uniform", "uniform"]
LossDifference = Literal["value", "sign"]
OuterOptimizer = Literal[
    "adamw",
    "lion",
    "adam",
    "nadam",
    "radam",
    "amsgrad",
    "adabelief",
    "yogi",
    "adagrad",
    "rmsprop",
    "sgd",
    "custom",
]
MetaLoss = Literal["training", "held-out", "final"]

CHOICES: dict[str, tuple[str, ...]] = {
    "variant": get_args(Variant),
    "outer_optimizer": get_args(OuterOptimizer),
    "estimator": get_args(Estimator),
    "loss_difference": get_args(LossDifference),
    "loss_scale": get_args(LossScale),
    "meta_loss": get_args(MetaLoss),
    "unroll_law": get_args(UnrollLaw),
    "level": LEVELS,
    "rate_units": get_args(RateUnits),
    "inner_schedule": get_args(Schedule),
}
"""Option of `MetaConfig` → its values."""
