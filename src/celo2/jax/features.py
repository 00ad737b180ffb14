"""The 14 groups of input features, computed from gradient, parameter and accumulators.

Source: arXiv 2602.19142, section 3; the order is `celo2.config.FEATURES`.

A channel is an array that broadcasts to the parameter's shape: the row and column features stay
vectors, and no array ever has a feature axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig
from celo2.constants import CLIPPED_GRAD, FACTOR_FLOOR, RSQRT_EPS
from celo2.jax.accumulators import Accumulators
from celo2.jax.dimensions import Axes

VECTORS = ("row", "col", "rsqrt_row", "rsqrt_col")  # the features that are rows or columns

FeatureGroups = dict[str, tuple[Array, ...]]  # weight name → channels
Factors = tuple[tuple[Array, ...], ...]  # for each decay, the results of `compute_factors`


class Inputs(NamedTuple):
    """The inputs from which the features of one array, or of a block of it, are computed.

    In the passes of `three_pass` the accumulators have no row and col, and memory references may replace
    arrays.

    Attributes:
        grad: The gradient; clipped, unless stated otherwise.
        param: The parameter, of the same shape.
        accumulators: The accumulators after the update with this gradient, bias-corrected if that is on.
        factors: The result of `compute_factors` for the accumulators.
        raw_factors: The same without bias correction, if that is on: the reference leaves only the factored
            gradient uncorrected.
    """

    grad: Any
    param: Any
    accumulators: Accumulators
    factors: tuple[tuple[Any, ...], ...]
    raw_factors: tuple[tuple[Any, ...], ...] | None = None

    def channels(self, config: RuleConfig) -> FeatureGroups:
        """Computes the channels of the parameter's shape; the gradient must be clipped."""
        momentum, rms = self.accumulators[:2]
        grad, param, _, factors, raw = self
        return compute_full(grad, param, momentum, rms, factors, config, raw_factors=raw)


def compute(
    grad: Array,
    param: Array,
    accumulators: Accumulators,
    axes: Axes | None,
    config: RuleConfig,
    *,
    raw: Accumulators | None = None,
    rms_eps: float = RSQRT_EPS,
) -> FeatureGroups:
    """Computes the enabled features of one array, each group under the name of its weight matrix.

    Args:
        grad: The clipped gradient, of any shape.
        param: The parameter, of the same shape and dtype.
        accumulators: The accumulators after the update with this gradient.
        axes: The factored axes, None for rank < 2.
        config: The options, which enable features.
        raw: The accumulators before bias correction, if that is on: the reference leaves only the
            factored gradient uncorrected.
        rms_eps: Added to the second moment under the reciprocal root; earlier rules use another value.
    """
    momentum, rms, row, col = accumulators
    factors = compute_factors(row, col, axes)
    raw_factors = factors if raw is None else compute_factors(raw.row, raw.col, axes)
    groups = compute_full(
        grad, param, momentum, rms, factors, config, raw_factors=raw_factors, rms_eps=rms_eps
    )
    return groups if axes is None else groups | compute_vectors(row, col, config)


def compute_full(
    grad: Array,
    param: Array,
    momentum: tuple[Array, ...],
    rms: tuple[Array, ...],
    factors: Factors,
    config: RuleConfig,
    *,
    raw_factors: Factors | None = None,
    rms_eps: float = RSQRT_EPS,
) -> FeatureGroups:
    """Computes the groups of the parameter's shape, elementwise, so arrays may be blocks.

    Args:
        grad: The clipped gradient, of any shape.
        param: The parameter, of the gradient's shape, like the arrays below.
        momentum: The updated momenta.
        rms: The updated second moments.
        factors: The result of `compute_factors`.
        config: The options, which enable features.
        raw_factors: The factors of the gradient, if they differ from the momenta's.
        rms_eps: As in `compute`.
    """
    rsqrt_rms = tuple(jax.lax.rsqrt(v + rms_eps) for v in rms)
    channels = {
        "grad": lambda: (grad,),
        "clipped_grad": lambda: (jnp.clip(grad, -CLIPPED_GRAD, CLIPPED_GRAD),),
        "param": lambda: (param,),
        "momentum": lambda: momentum,
        "rms": lambda: rms,
        "normalized_momentum": lambda: tuple(
            m * s for m, s in zip(momentum, _repeat(rsqrt_rms, len(momentum)), strict=True)
        ),
        "rsqrt_rms": lambda: rsqrt_rms,
        "factored_grad": lambda: tuple(_scale(grad, factor) for factor in raw_factors or factors),
        "normalized_grad": lambda: tuple(grad * s for s in rsqrt_rms),
        "factored_momentum": lambda: tuple(_scale(m, f) for m, f in zip(momentum, factors, strict=True)),
    }
    return _enabled(channels, grad.ndim, config)


def compute_vectors(row: tuple[Array, ...], col: tuple[Array, ...], config: RuleConfig) -> FeatureGroups:
    """Computes the groups that stay vectors for an array of rank ≥ 2, from its factored accumulators."""
    channels = {
        "row": lambda: row,
        "col": lambda: col,
        "rsqrt_row": lambda: tuple(jax.lax.rsqrt(r + RSQRT_EPS) for r in row),
        "rsqrt_col": lambda: tuple(jax.lax.rsqrt(c + RSQRT_EPS) for c in col),
    }
    return _enabled(channels, 2, config)


def count_full(config: RuleConfig) -> int:
    """Returns the number of channels that `compute_full` computes for a matrix."""
    groups = config.feature_groups(2)
    return sum(config.num_channels(feature) for _, feature in groups if feature.name not in VECTORS)


def compute_factors(row: tuple[Array, ...], col: tuple[Array, ...], axes: Axes | None) -> Factors:
    """Computes the factors that divide a gradient by the root of its factored second moment."""
    if axes is None:
        return tuple((jax.lax.rsqrt(jnp.maximum(r + FACTOR_FLOOR, FACTOR_FLOOR)),) for r in row)
    rows = jnp.stack(row)  # all decays at once: a few small kernels instead of one set per decay
    row_mean = jnp.mean(rows, axis=axes.small + 1, keepdims=True)
    row_factors = jax.lax.rsqrt(jnp.maximum(rows / (row_mean + FACTOR_FLOOR), FACTOR_FLOOR))
    col_factors = jax.lax.rsqrt(jnp.maximum(jnp.stack(col), FACTOR_FLOOR))
    return tuple(zip(row_factors, col_factors, strict=True))


def _enabled(
    channels: Mapping[str, Callable[[], tuple[Array, ...]]], rank: int, config: RuleConfig
) -> FeatureGroups:
    groups = config.feature_groups(rank)
    return {name: channels[feature.name]() for name, feature in groups if feature.name in channels}


def _scale(array: Array, factors: tuple[Array, ...]) -> Array:
    for factor in factors:
        array = array * factor
    return array


def _repeat(values: tuple[Array, ...], count: int) -> tuple[Array, ...]:
    return values * count if len(values) == 1 else values
