"""Optimizers by name, each with the range of learning rates that it is tuned over.

Every entry is an Optax transform that an outsider would recognise: the hand-designed ones are Optax's
own, at settings that make them strong, since a comparison is worth what its weakest baseline is.
A learned rule is named `celo2` or `celo2-base` (the shipped weights), or `celo2:PATH` for other ones; its
predecessors, which no weights are shipped of, `celo:PATH`, `velo_s:PATH` and so on (`celo2.zoo`).

References:
    AdamW: arXiv 1711.05101. Muon: Jordan, 2024 (kellerjordan.github.io/posts/muon), and arXiv
    2502.16982 for its step size. Celo2: arXiv 2602.19142.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from celo2.config import nearest_name
from celo2.jax.routing import param_labels
from celo2.jax.transform import celo2, celo2_base
from celo2.weights import load_checkpoint
from celo2.zoo.factory import make as make_predecessor
from celo2.zoo.specs import PRESETS
from celo2.zoo.weights import load_weights

__all__ = [
    "OPTIMIZERS",
    "MakeOptimizer",
    "OptimizerSpec",
    "check_optimizer_name",
    "find_optimizer",
    "make_optimizer",
]

MakeOptimizer = Callable[[optax.ScalarOrSchedule, float], optax.GradientTransformation]

ADAM_BETAS = (0.9, 0.95)  # as in Celo2's AdamW branch, and usual for language models
MUON_BETA = 0.95  # Nesterov momentum, Muon's published setting
MUON_ADAMW_SCALE = 20.0  # as in Celo2, so that the two differ in their matrices alone
SGD_MOMENTUM = 0.9
LEARNED = {"celo2": celo2, "celo2-base": celo2_base}


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer that can be tuned.

    Attributes:
        name: For the command line and the reports.
        description: One line for the reports: what it is, and its fixed settings.
        make: `(learning rate or schedule, weight decay) → Optax transform`.
        learning_rate_range: The lowest and the highest learning rate of the default grid, chosen
            so that the best lies inside on the tasks of this package.
        sets_own_rate: Whether it chooses its step sizes itself: there is one run for each seed, at "rate" 1,
            and weight decay, which is measured by a learning rate, has no meaning.
    """

    name: str
    description: str
    make: MakeOptimizer
    learning_rate_range: tuple[float, float]
    sets_own_rate: bool = False

    def learning_rates(self, count: int) -> tuple[float, ...]:
        """The default grid: `count` ≥ 1 values, log-uniform over the range; one value is its middle.

        Only the value 1 where the optimizer sets its own.
        """
        if count < 1:
            raise ValueError(f"a grid needs at least one learning rate, got {count}.")
        if self.sets_own_rate:
            return (1.0,)
        low, high = self.learning_rate_range
        exact = np.geomspace(low, high, count) if count > 1 else [(low * high) ** 0.5]
        return tuple(float(f"{value:.3g}") for value in exact)


def _make_adamw(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    b1, b2 = ADAM_BETAS
    return optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)


def _make_muon(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    matrices = optax.contrib.muon(
        learning_rate,
        beta=MUON_BETA,
        nesterov=True,
        weight_decay=weight_decay,
        muon_weight_dimension_numbers=_matrix_axes,
        consistent_rms=1.0,
    )
    rest = _make_adamw(_scaled(learning_rate, MUON_ADAMW_SCALE), weight_decay)
    return optax.partition({"celo2": matrices, "adamw": rest}, param_labels)


def _make_sgd(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(SGD_MOMENTUM),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _matrix_axes(params: optax.Params) -> Any:
    """A kernel of rank 4 is a convolution (HWIO) and one matrix, one of rank 3 a stack of matrices."""
    return jax.tree.map(
        lambda param: MuonDimensionNumbers(
            reduction_axis=(0, 1, 2) if param.ndim == 4 else -2, output_axis=-1
        ),
        params,
    )


def _scaled(learning_rate: optax.ScalarOrSchedule, factor: float) -> optax.ScalarOrSchedule:
    if callable(learning_rate):
        return lambda count: factor * learning_rate(count)
    return factor * learning_rate


def _learned(variant: str, weights: Any = None) -> MakeOptimizer:
    transform = LEARNED[variant]
    return lambda learning_rate, weight_decay: transform(
        learning_rate, weights=weights, weight_decay=weight_decay
    )


_UNIT_STEP_RANGE = (1e-4, 3e-2)  # of optimizers whose step on a matrix has root mean square 1
_SPECS = (
    OptimizerSpec(
        "celo2",
        "Celo2: the learned rule and Newton–Schulz on hidden matrices, AdamW at 20 × the rate on the rest",
        _learned("celo2"),
        _UNIT_STEP_RANGE,
    ),
    OptimizerSpec(
        "celo2-base",
        "Celo2-base: the learned rule on every parameter",
        _learned("celo2-base"),
        _UNIT_STEP_RANGE,
    ),
    OptimizerSpec("adamw", "AdamW, betas 0.9 and 0.95", _make_adamw, (3e-4, 1e-1)),
    OptimizerSpec(
        "muon",
        "Muon on the matrices that Celo2 orthogonalises (Nesterov momentum 0.95, step RMS 1), "
        "AdamW at 20 × the rate on the rest",
        _make_muon,
        _UNIT_STEP_RANGE,
    ),
    OptimizerSpec("sgd", "SGD with momentum 0.9", _make_sgd, (1e-3, 1.0)),
)

OPTIMIZERS: dict[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}
"""The optimizers by name."""


def check_optimizer_name(name: str) -> None:
    """Raises a ValueError, with the nearest name, for a name that `find_optimizer` cannot know."""
    variant, colon, source = name.partition(":")
    if name in OPTIMIZERS or (colon and source and variant in (*LEARNED, *PRESETS)):
        return
    if variant in PRESETS:
        raise ValueError(
            f"{name!r} has no weights in this package: name them as {variant}:PATH, or {variant}:OWNER/NAME "
            "for a hub repository (celo:amoudgl/celo, say)."
        )
    raise ValueError(
        f"unknown optimizer {name!r}{nearest_name(name, [*OPTIMIZERS, *PRESETS])} "
        f"There are {', '.join(OPTIMIZERS)}, celo2:PATH, celo2-base:PATH, and, each with :PATH, "
        f"{', '.join(PRESETS)}."
    )


def find_optimizer(name: str, *, num_steps: int | None = None) -> OptimizerSpec:
    """The optimizer of this name.

    Args:
        name: A key of `OPTIMIZERS`, or `celo2:SOURCE` / `celo2-base:SOURCE`, where the source is
            anything that `celo2.load_checkpoint` takes (a path, say); or `PRESET:SOURCE` with a preset of
            `celo2.zoo` and what `celo2.zoo.load_weights` takes.
        num_steps: Length of the runs, which some of the last need.

    Raises:
        ValueError: The name is unknown (the message has the nearest), or the weights are unfit.
        OSError: The file of weights cannot be read.

    Example:
        >>> find_optimizer("adamw").learning_rates(3)
        (0.0003, 0.00548, 0.1)
    """
    check_optimizer_name(name)
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    variant, _, source = name.partition(":")
    if variant in PRESETS:
        return _predecessor(name, num_steps)
    weights = load_checkpoint(source, orthogonalize=variant == "celo2")
    shipped = OPTIMIZERS[variant]
    return dataclasses.replace(
        shipped,
        name=name,
        description=f"{shipped.description}; weights from {source}",
        make=_learned(variant, weights),
    )


def _predecessor(name: str, num_steps: int | None) -> OptimizerSpec:
    preset, _, source = name.partition(":")
    weights = load_weights(source)
    make_predecessor(preset, weights=weights, num_steps=num_steps)  # refuses now rather than under tracing

    def make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
        del learning_rate
        if weight_decay:
            raise ValueError(f"{name} has no learning rate to measure a weight decay of {weight_decay} by.")
        return make_predecessor(preset, weights=weights, num_steps=num_steps)

    description = f"{preset}, a learned optimizer that sets its own step sizes; weights from {source}"
    return OptimizerSpec(name, description, make, (1.0, 1.0), sets_own_rate=True)


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    num_steps: int | None = None,
) -> optax.GradientTransformation:
    """Builds an optimizer by name; the arguments and errors are those of `find_optimizer`.

    Example:
        >>> make_optimizer("adam", 1e-3)
        Traceback (most recent call last):
        ValueError: unknown optimizer 'adam'; did you mean 'adamw'? There are ...
    """
    return find_optimizer(name, num_steps=num_steps).make(learning_rate, weight_decay)
