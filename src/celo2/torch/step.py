"""The update of one tensor: the algorithm box of Celo2.

Source: arXiv 2602.19142, section 3.

    g ← clip(g, ±1000)
    m, v, r, c ← accumulators(g)
    d ← network(features(g, p, m, v, r, c))
    d ← NewtonSchulz(d)          Celo2 on matrices; Celo2-base leaves it out
    step ← d / rms(d)

The step is not negated and has root mean square 1, so the learning rate is the change per step. With
`Network.skip_zero_gradients`, a matrix whose gradient is exactly zero has the step 0 and keeps its
accumulators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import GRAD_CLIP, PRECONDITION_EPS
from celo2.torch import accumulators as accumulators_lib
from celo2.torch import features, mlp, orthogonalize, three_pass
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Axes
from celo2.torch.features import Inputs
from celo2.torch.three_pass import Matrix, Passes
from celo2.torch.weights import Network


def update(
    network: Network,
    grad: Tensor,
    param: Tensor,
    accumulators: Accumulators,
    count: Tensor | None,
    *,
    axes: Axes | None,
) -> tuple[Tensor, Tensor | None]:
    """Computes the steps of stacked tensors by the plain program, which covers all options.

    Args:
        network: The weights and the options.
        grad: The gradients, `(stack, *layout.shape)`.
        param: The parameters, with the same shape and dtype (that of the accumulators).
        accumulators: The accumulators before this update, with the same leading axis; updated in place.
        count: The step count including this update, `(stack, 1, …)`; needed only for bias correction.
        axes: The factored axes (`dimensions.make_axes`), None for rank < 2.

    Returns:
        The un-negated steps, in the gradients' shape, and which matrices were busy
        (`accumulators.find_busy`); None: all.
    """
    config = network.config
    if grad.numel() == 0:
        return torch.zeros_like(grad), None
    grad = grad.clamp(-GRAD_CLIP, GRAD_CLIP)
    busy = accumulators_lib.update(accumulators, grad, axes, config, skip_zero=network.skip_zero_gradients)
    seen, raw = accumulators, None
    if config.bias_correction and count is not None:
        seen, raw = accumulators_lib.unbias(accumulators, count, config), accumulators
    inputs = features.make_inputs(grad, param, seen, axes, raw=raw)
    step, magnitude = compute_direction(inputs, network, axes is not None)
    step = _scale_by_magnitude(step, magnitude, config)
    if config.param_scale_mult:
        step = _scale_by_param(step, param)
    if config.orthogonalize and axes is not None:
        step = orthogonalize.compute(step, config)
    return _finish(step, mlp.mean_square(step), seen, config, busy), busy


def compute_direction(inputs: Inputs, network: Network, factored: bool) -> tuple[Tensor, Tensor | None]:
    """Computes the direction and magnitude of every element; see `mlp.compute`."""
    config = network.config
    names = [name for name, _ in config.feature_groups(1 + factored)]
    groups = features.compute(inputs, names, config)
    scales = mlp.input_scales(groups) if config.normalize_input else None
    return mlp.compute(groups, scales, network.numbers, config)


def update_all(
    network: Network, matrices: Sequence[Matrix], passes: Passes, *, axes: Axes | None
) -> list[tuple[Tensor, Tensor | None]]:
    """Computes the steps of matrices that `three_pass.covers`, and which were busy, as in `update`.

    Args:
        network: The weights and the options.
        matrices: Matrices of one shape, each a stack as in `update`; their accumulators are updated in place.
        passes: The implementation of the passes.
        axes: As in `update`.
    """
    config = network.config
    orthogonalized = config.orthogonalize and axes is not None
    directions = three_pass.compute(network, matrices, passes, axes=axes)
    steps, mean_squares, busy = (list(family) for family in zip(*directions, strict=True))
    if config.param_scale_mult:
        steps = [_scale_by_param(step, own.param) for step, own in zip(steps, matrices, strict=True)]
    if orthogonalized:
        steps = orthogonalize.compute_all(steps, config)
    if orthogonalized or config.param_scale_mult:
        mean_squares = [mlp.mean_square(step) for step in steps]
    return [
        (_finish(step, mean_square, matrix.accumulators, config, own), own)
        for step, mean_square, matrix, own in zip(steps, mean_squares, matrices, busy, strict=True)
    ]


def _scale_by_magnitude(direction: Tensor, magnitude: Tensor | None, config: RuleConfig) -> Tensor:
    if magnitude is None:
        return direction
    if config.aggregate_mag:
        magnitude = magnitude.mean(_whole(magnitude), keepdim=True)
    return direction * torch.exp(config.exp_mult * magnitude)


def _scale_by_param(step: Tensor, param: Tensor) -> Tensor:
    param = param.to(step.dtype)
    return step * torch.sqrt((param * param).mean(_whole(param), keepdim=True) + mlp.NORM_EPS)


def _finish(
    step: Tensor, mean_square: Tensor, accumulators: Accumulators, config: RuleConfig, busy: Tensor | None
) -> Tensor:
    """Normalises and rescales the step, in place where possible."""
    scale = busy
    if config.normalize_output:
        scale = mlp.normalizer(mean_square)
        scale = scale if busy is None else scale * busy
    if scale is not None:
        step = step.mul_(scale)
    if config.rmsmult != 1.0:
        step = step.mul_(config.rmsmult)
    if config.precondition_output:
        step = step * torch.rsqrt(accumulators.rms[-1] + PRECONDITION_EPS)
    return step


def _whole(tensor: Tensor) -> tuple[int, ...]:
    """Returns all axes but the stack's."""
    return tuple(range(1, tensor.ndim))
