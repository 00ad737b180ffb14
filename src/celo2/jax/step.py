"""The update of one array: the algorithm box of Celo2.

Source: arXiv 2602.19142, section 3.

    g ← clip(g, ±1000)
    m, v, r, c ← accumulators(g)
    d ← network(features(g, p, m, v, r, c))
    d ← NewtonSchulz(d)          Celo2 on matrices; not in Celo2-base
    step ← d / rms(d)

The step is not negated and has root mean square 1: the learning rate is the change per step. With
`skip_zero`, a matrix whose gradient is exactly zero gets a step of 0 and keeps its accumulators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from celo2.config import RuleConfig
from celo2.constants import PRECONDITION_EPS
from celo2.jax import accumulators as accumulators_lib
from celo2.jax import dispatch, features, mlp, orthogonalize, three_pass
from celo2.jax.accumulators import Accumulators, Leaf
from celo2.jax.dimensions import Axes

Result = tuple[Array, Accumulators]  # the un-negated step, of the gradient's shape, and the accumulators


def update(
    weights: Mapping[str, Any],
    grad: Array,
    param: Array,
    accumulators: Accumulators,
    count: ArrayLike,
    *,
    axes: Axes | None,
    config: RuleConfig,
    skip_zero: bool = False,
) -> Result:
    """Computes the step and the new accumulators of one array: `update_all` for this array alone."""
    arrays = [Leaf(grad, param, accumulators)]
    (result,) = update_all(weights, arrays, count, axes=axes, config=config, skip_zero=skip_zero)
    return result


def update_all(
    weights: Mapping[str, Any],
    arrays: Sequence[Leaf],
    count: ArrayLike,
    *,
    axes: Axes | None,
    config: RuleConfig,
    skip_zero: bool = False,
) -> list[Result]:
    """Computes the steps and the new accumulators of arrays of one shape and dtype.

    Args:
        weights: The network's arrays by name.
        arrays: Arrays of any rank; everything is computed in the dtype of their row accumulators.
        count: The step count including this update, from 1.
        axes: The factored axes (`dimensions.make_axes`), None for rank < 2.
        config: The rule's options.
        skip_zero: Whether matrices whose gradient is exactly zero are left unchanged: individually in a
            stack, along the last two axes; an array of rank < 2 as a whole.
    """
    grad, _, accumulators = arrays[0]
    if grad.size == 0:
        return [(array.grad.astype(accumulators.row[0].dtype), array.accumulators) for array in arrays]
    chosen = dispatch.choose(weights, grad, accumulators, axes, config)
    if chosen == "plain" or axes is None:
        opaque = mlp.make_opaque(weights, config)
        plain = partial(_update, opaque, axes=axes, config=config, skip_zero=skip_zero)
        return [plain(*array, count) for array in arrays]

    def by_xla(arrays: Sequence[Leaf]) -> list[Result]:
        # One by one: a loop that reads a part of a stack is compiled separately for each part.
        passes = three_pass.make_passes(mlp.make_opaque(weights, config), config)

        def one(array: Leaf) -> three_pass.Direction:
            return by_passes([_convert(array)], passes)[0]

        if isinstance(grad, Tracer):
            one = jax.jit(one)  # traced once for all arrays; without jit it would be compiled at each call
        return _finish_all(list(map(one, arrays)), arrays, config)

    def by_kernels(arrays: Sequence[Leaf], interpret: bool) -> list[Result]:
        from celo2.jax.pallas import kernels  # imports Pallas, which only GPUs need

        passes = kernels.make_passes(weights, config, interpret=interpret)
        return _finish_all(by_passes(arrays, passes), arrays, config)

    def by_passes(arrays: Sequence[Leaf], passes: three_pass.Passes) -> list[three_pass.Direction]:
        return three_pass.compute(weights, arrays, passes, axes=axes, config=config, skip_zero=skip_zero)

    return dispatch.run(chosen, by_xla, by_kernels, list(arrays))


def _convert(array: Leaf) -> Leaf:
    dtype = array.accumulators.row[0].dtype
    return jax.tree.map(lambda x: x.astype(dtype), array)


def _update(
    weights: Mapping[str, Any],
    grad: Array,
    param: Array,
    accumulators: Accumulators,
    count: ArrayLike,
    *,
    axes: Axes | None,
    config: RuleConfig,
    skip_zero: bool,
) -> Result:
    """Computes the step by the plain program, which follows the box above and covers all options."""
    grad, param, old = _convert(Leaf(grad, param, accumulators))
    grad, busy = accumulators_lib.clip(grad), None
    accumulators = accumulators_lib.update(old, grad, axes, config)
    if skip_zero:
        busy = accumulators_lib.find_busy(jnp.square(grad))
        accumulators = accumulators_lib.keep_idle(old, accumulators, busy, axes)
    seen = accumulators_lib.unbias(accumulators, count, config) if config.bias_correction else accumulators
    raw = accumulators if config.bias_correction else None
    groups, scales = features.compute(grad, param, seen, axes, config, raw=raw), None
    if config.normalize_input:
        # The barrier separates these channels from the network's: computed twice, never stored.
        grad, param, again, raw = jax.lax.optimization_barrier((grad, param, seen, raw))
        scales = mlp.input_scales(features.compute(grad, param, again, axes, config, raw=raw))
    direction, magnitude = dispatch.choose_network()(groups, scales, weights, config)
    step = _scale_by_magnitude(direction, magnitude, config)
    if config.param_scale_mult:
        step = _scale_by_param(step, param)
    if config.orthogonalize and step.ndim >= 2:
        step = orthogonalize.compute(step, config)
    return _finish(step, mlp.mean_square(step), seen, config, busy), accumulators


def _scale_by_magnitude(direction: Array, magnitude: Array | None, config: RuleConfig) -> Array:
    if magnitude is None:
        return direction
    if config.aggregate_mag:
        magnitude = jnp.mean(magnitude)
    return direction * jnp.exp(config.exp_mult * magnitude)


def _scale_by_param(step: Array, param: Array) -> Array:
    return step * jnp.sqrt(jnp.mean(param * param) + mlp.NORM_EPS)


def _finish(
    step: Array, mean_square: Array, accumulators: Accumulators, config: RuleConfig, busy: Array | None
) -> Array:
    if config.normalize_output:
        step = step * mlp.normalizer(mean_square)
    step = step * config.rmsmult
    if config.precondition_output:
        step = step * jax.lax.rsqrt(accumulators.rms[-1] + PRECONDITION_EPS)
    return step if busy is None else jnp.where(busy, step, jnp.zeros_like(step))


def _finish_all(
    directions: Sequence[three_pass.Direction], arrays: Sequence[Leaf], config: RuleConfig
) -> list[Result]:
    """Turns the directions of matrices into their steps, as `_update` does."""
    steps, mean_squares, news, busy = map(list, zip(*directions, strict=True))
    if config.param_scale_mult:
        params = [array.param.astype(step.dtype) for array, step in zip(arrays, steps, strict=True)]
        steps = list(map(_scale_by_param, steps, params))
    if config.orthogonalize:
        steps = orthogonalize.compute_all(steps, config)
    if config.orthogonalize or config.param_scale_mult:
        mean_squares = list(map(mlp.mean_square, steps))
    return [
        (_finish(step, mean_square, new, config, own), new)
        for step, mean_square, new, own in zip(steps, mean_squares, news, busy, strict=True)
    ]
