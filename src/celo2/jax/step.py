"""One update of one array: the algorithm box of Celo2.

Source: arXiv 2602.19142, section 3.

    g ← clip(g, ±1000)
    m, v, r, c ← accumulators(g)
    d ← network(features(g, p, m, v, r, c))
    d ← NewtonSchulz(d)          Celo2 on matrices; Celo2-base leaves it out
    step ← d / rms(d)

The step is not negated and has root mean square 1: the learning rate is the change per step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from celo2.config import RuleConfig
from celo2.constants import PRECONDITION_EPS
from celo2.jax import accumulators as accumulators_lib
from celo2.jax import features, implementation, mlp, orthogonalize
from celo2.jax.accumulators import Accumulators
from celo2.jax.dimensions import Axes

__all__ = ["update"]

_Inputs = tuple[Array, Array, Accumulators, Accumulators | None]  # as `features.compute` takes them


def update(
    weights: Mapping[str, Any],
    grad: Array,
    param: Array,
    accumulators: Accumulators,
    count: ArrayLike,
    *,
    axes: Axes | None,
    config: RuleConfig,
) -> tuple[Array, Accumulators]:
    """The step for one array, and its new accumulators.

    Args:
        weights: The network's arrays by name.
        grad: The gradient, of any shape and floating dtype.
        param: The parameter, of the same shape; both are converted to the accumulators' dtype.
        accumulators: Of the steps before; momenta and rms may be of a smaller dtype than row and col.
        count: This step's number, from 1.
        axes: The factored axes (`dimensions.make_axes`), None for rank < 2.
        config: The rule's options.

    Returns:
        The un-negated step, of the gradient's shape, and the accumulators.
    """
    if grad.size == 0:
        return grad.astype(accumulators.row[0].dtype), accumulators
    options: dict[str, Any] = {"axes": axes, "config": config}
    return implementation.run(
        implementation.choose(weights, grad, accumulators, axes, config),
        partial(_update, weights, **options),
        partial(_update_by_kernels, weights, **options),
        grad,
        param,
        accumulators,
        count,
    )


def _update(
    weights: Mapping[str, Any],
    grad: Array,
    param: Array,
    accumulators: Accumulators,
    count: ArrayLike,
    *,
    axes: Axes | None,
    config: RuleConfig,
) -> tuple[Array, Accumulators]:
    dtype = accumulators.row[0].dtype
    grad, param, accumulators = jax.tree.map(lambda x: x.astype(dtype), (grad, param, accumulators))
    grad = jnp.clip(grad, -accumulators_lib.GRAD_CLIP, accumulators_lib.GRAD_CLIP)
    accumulators = accumulators_lib.update(accumulators, grad, axes, config)
    seen = accumulators_lib.unbias(accumulators, count, config) if config.bias_correction else accumulators
    inputs = (grad, param, seen, accumulators if config.bias_correction else None)
    scales = _input_scales(inputs, axes, config) if config.normalize_input else None
    groups = _features(inputs, axes, config)
    direction, magnitude = mlp.compute(groups, scales, weights, config)
    step = _scale_by_magnitude(direction, magnitude, config)
    return _finish(step, param, seen, config), accumulators


def _update_by_kernels(
    weights: Mapping[str, Any],
    grad: Array,
    param: Array,
    accumulators: Accumulators,
    count: ArrayLike,  # noqa: ARG001  # what the kernels cover has no bias correction
    interpret: bool,
    *,
    axes: Axes,
    config: RuleConfig,
) -> tuple[Array, Accumulators]:
    from celo2.jax import pallas  # loads Pallas, which only GPUs need

    direction, mean_square, accumulators = pallas.compute(
        weights, grad, param, accumulators, axes=axes, config=config, interpret=interpret
    )
    param = param.astype(direction.dtype)
    return _finish(direction, param, accumulators, config, mean_square), accumulators


def _features(inputs: _Inputs, axes: Axes | None, config: RuleConfig) -> features.FeatureGroups:
    grad, param, seen, raw = inputs
    return features.compute(grad, param, seen, axes, config, raw=raw)


def _input_scales(inputs: _Inputs, axes: Axes | None, config: RuleConfig) -> mlp.InputScales:
    """The barrier keeps the features of this pass apart from the network's: computed twice, never stored."""
    return mlp.input_scales(_features(jax.lax.optimization_barrier(inputs), axes, config))


def _scale_by_magnitude(direction: Array, magnitude: Array | None, config: RuleConfig) -> Array:
    if magnitude is None:
        return direction
    if config.aggregate_mag:
        magnitude = jnp.mean(magnitude)
    return direction * jnp.exp(config.exp_mult * magnitude)


def _finish(
    step: Array,
    param: Array,
    accumulators: Accumulators,
    config: RuleConfig,
    mean_square: Array | None = None,
) -> Array:
    """From the direction to the step; `mean_square` is the direction's, if it is known."""
    if config.param_scale_mult:
        step, mean_square = step * jnp.sqrt(jnp.mean(param * param) + mlp.NORM_EPS), None
    if config.orthogonalize and step.ndim >= 2:
        step, mean_square = orthogonalize.compute(step, config), None
    if config.normalize_output:
        step = step * mlp.normalizer(mlp.mean_square(step) if mean_square is None else mean_square)
    step = step * config.rmsmult
    if config.precondition_output:
        step = step * jax.lax.rsqrt(accumulators.rms[-1] + PRECONDITION_EPS)
    return step
