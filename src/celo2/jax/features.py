"""Gradient, parameter, accumulators → the 14 groups of input features.

Source: arXiv 2602.19142, section 3; the order is `celo2.config.FEATURES`.

A channel is an array that broadcasts to the parameter's shape: the row and column features stay
vectors, and no array ever has a feature axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig
from celo2.constants import CLIPPED_GRAD, FACTOR_FLOOR, RSQRT_EPS
from celo2.jax.accumulators import Accumulators
from celo2.jax.dimensions import Axes

VECTORS = ("row", "col", "rsqrt_row", "rsqrt_col")  # the features that `compute_vectors` makes

FeatureGroups = dict[str, tuple[Array, ...]]  # weight name → channels
Factors = tuple[tuple[Array, ...], ...]  # for each decay, what a gradient is multiplied by


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
    """The enabled features of one array, each group under the name of its weight matrix.

    Args:
        grad: The clipped gradient, of any shape.
        param: The parameter, of the same shape and dtype.
        accumulators: Already updated with this gradient.
        axes: The factored axes, None for rank < 2.
        config: Which features are enabled.
        raw: The accumulators before bias correction, where that is on: the reference leaves the
            factored gradient uncorrected, and only that.
        rms_eps: Under the reciprocal root of the second moment; the predecessors have another.
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
    """The groups of the parameter's shape; element by element, so blocks of the arrays will do.

    Args:
        grad: The clipped gradient, of any shape.
        param: The parameter, as all the following of the gradient's shape.
        momentum: Already updated.
        rms: Already updated.
        factors: Of `compute_factors`.
        config: Which features are enabled.
        raw_factors: The gradient's, where they are others than the momenta's.
        rms_eps: See `compute`.
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
    """The groups of an array of rank ≥ 2 that stay vectors, from its factored accumulators."""
    channels = {
        "row": lambda: row,
        "col": lambda: col,
        "rsqrt_row": lambda: tuple(jax.lax.rsqrt(r + RSQRT_EPS) for r in row),
        "rsqrt_col": lambda: tuple(jax.lax.rsqrt(c + RSQRT_EPS) for c in col),
    }
    return _enabled(channels, 2, config)


def count_full(config: RuleConfig) -> int:
    """How many channels `compute_full` makes of a matrix."""
    groups = config.feature_groups(2)
    return sum(config.num_channels(feature) for _, feature in groups if feature.name not in VECTORS)


def compute_factors(row: tuple[Array, ...], col: tuple[Array, ...], axes: Axes | None) -> Factors:
    """What a gradient is multiplied by to divide it by the root of its factored second moment."""
    if axes is None:
        return tuple((jax.lax.rsqrt(jnp.maximum(r + FACTOR_FLOOR, FACTOR_FLOOR)),) for r in row)
    rows = jnp.stack(row)  # all decays at once: a handful of small kernels instead of one set for each
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
