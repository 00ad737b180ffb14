"""The 14 groups of input features, computed from gradient, parameter and accumulators.

Source: arXiv 2602.19142, section 3; the order is `celo2.config.FEATURES`.

A channel is a tensor that broadcasts to the parameter's shape: row and column features stay vectors, and
no tensor ever has a trailing feature axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import CLIPPED_GRAD, FACTOR_FLOOR, RSQRT_EPS
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Axes

VECTORS = ("row", "col", "rsqrt_row", "rsqrt_col")  # the features that are rows or columns

FeatureGroups = dict[str, tuple[Tensor, ...]]  # weight name → channels
Factors = tuple[tuple[Tensor, ...], ...]  # for each decay, the results of `compute_factors`


class Inputs(NamedTuple):
    """The inputs from which the features of one tensor, or of a block of it, are computed.

    Attributes:
        grad: The gradient; clipped, unless a function says otherwise.
        param: The parameter, of the same shape.
        accumulators: The accumulators after the update with this gradient, bias-corrected if that is on.
        factors: The result of `compute_factors` for the accumulators.
        raw_factors: The same without bias correction, if that is on: the reference leaves only the factored
            gradient uncorrected.
    """

    grad: Tensor
    param: Tensor
    accumulators: Accumulators
    factors: Factors
    raw_factors: Factors | None = None


def make_inputs(
    grad: Tensor,
    param: Tensor,
    accumulators: Accumulators,
    axes: Axes | None,
    *,
    raw: Accumulators | None = None,
) -> Inputs:
    """Makes inputs with their factors; `raw` are the accumulators before bias correction."""
    factors = compute_factors(accumulators.row, accumulators.col, axes)
    raw_factors = None if raw is None else compute_factors(raw.row, raw.col, axes)
    return Inputs(grad, param, accumulators, factors, raw_factors)


def full_names(config: RuleConfig, *, factored: bool) -> list[str]:
    """Returns the weight names of groups whose channels have the parameter's shape."""
    return [name for name, feature in config.feature_groups(1 + factored) if feature.name not in VECTORS]


def full_channels(config: RuleConfig, *, factored: bool) -> list[tuple[str, int]]:
    """Returns the channels with the parameter's shape, in order, as `(feature, index within the feature)`."""
    return [
        (feature.name, index)
        for _, feature in config.feature_groups(1 + factored)
        if feature.name not in VECTORS
        for index in range(config.num_channels(feature))
    ]


def vector_names(config: RuleConfig, *, factored: bool) -> list[str]:
    """Returns the weight names of groups whose channels are rows or columns."""
    return [name for name, feature in config.feature_groups(1 + factored) if feature.name in VECTORS]


def compute(inputs: Inputs, names: Sequence[str], config: RuleConfig) -> FeatureGroups:
    """Computes the channels of some groups, by the names of their weight matrices.

    Args:
        inputs: The result of `make_inputs`.
        names: Names from `full_names` and `vector_names`.
        config: The options, which enable features.
    """
    grad, param, (momentum, rms, row, col), factors, raw_factors = inputs
    wanted = {name: feature.name for name, feature in config.feature_groups(2) if name in names}
    rsqrt_rms: tuple[Tensor, ...] = ()
    if any("rms" in feature or "normalized" in feature for feature in wanted.values()):
        rsqrt_rms = tuple(torch.rsqrt(v + RSQRT_EPS) for v in rms)
    channels = {
        "grad": lambda: (grad,),
        "clipped_grad": lambda: (grad.clamp(-CLIPPED_GRAD, CLIPPED_GRAD),),
        "param": lambda: (param,),
        "momentum": lambda: momentum,
        "rms": lambda: rms,
        "normalized_momentum": lambda: tuple(
            m * s for m, s in zip(momentum, _repeat(rsqrt_rms, len(momentum)), strict=True)
        ),
        "rsqrt_rms": lambda: rsqrt_rms,
        "factored_grad": lambda: tuple(_scale(grad, factor) for factor in raw_factors or factors),
        "normalized_grad": lambda: tuple(grad * s for s in rsqrt_rms),
        "row": lambda: row,
        "col": lambda: col,
        "rsqrt_row": lambda: tuple(torch.rsqrt(r + RSQRT_EPS) for r in row),
        "rsqrt_col": lambda: tuple(torch.rsqrt(c + RSQRT_EPS) for c in col),
        "factored_momentum": lambda: tuple(_scale(m, f) for m, f in zip(momentum, factors, strict=True)),
    }
    return {name: tuple(channels[feature]()) for name, feature in wanted.items()}


def compute_factors(row: tuple[Tensor, ...], col: tuple[Tensor, ...], axes: Axes | None) -> Factors:
    """Computes the factors that divide a gradient by the root of its factored second moment."""
    if axes is None:
        return tuple((torch.rsqrt((r + FACTOR_FLOOR).clamp_min(FACTOR_FLOOR)),) for r in row)
    return tuple(
        (
            torch.rsqrt((r / (r.mean(axes.small, keepdim=True) + FACTOR_FLOOR)).clamp_min(FACTOR_FLOOR)),
            torch.rsqrt(c.clamp_min(FACTOR_FLOOR)),
        )
        for r, c in zip(row, col, strict=True)
    )


def _scale(tensor: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    for factor in factors:
        tensor = tensor * factor
    return tensor


def _repeat(values: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return values * count if len(values) == 1 else values
