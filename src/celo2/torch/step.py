"""One update of one tensor: the algorithm box of Celo2.

Source: arXiv 2602.19142, section 3.

    g ← clip(g, ±1000)
    m, v, r, c ← accumulators(g)
    d ← network(features(g, p, m, v, r, c))
    d ← NewtonSchulz(d)          Celo2 on matrices; Celo2-base leaves it out
    step ← d / rms(d)

The step is not negated and has root mean square 1: the learning rate is the change per step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import PRECONDITION_EPS
from celo2.torch import accumulators as accumulators_lib
from celo2.torch import features, mlp, orthogonalize
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Axes
from celo2.torch.features import Inputs
from celo2.torch.network import Network

__all__ = ["compute_direction", "update"]


Direction = Callable[[Inputs, Network, bool], tuple[Tensor, Tensor | None]]


def update(
    network: Network,
    grad: Tensor,
    param: Tensor,
    accumulators: Accumulators,
    count: Tensor | None,
    *,
    axes: Axes | None,
    direction: Direction | None = None,
) -> Tensor:
    """The step of tensors of one shape, stacked; their accumulators are updated in place.

    Args:
        network: The weights and the options.
        grad: The gradients, `(stack, *layout.shape)`.
        param: The parameters, of the same shape and dtype (that of the accumulators).
        accumulators: Of the steps before, with the same axis in front; changed.
        count: This step's number, from 1, `(stack, 1, …)`; needed for bias correction alone.
        axes: The factored axes (`dimensions.make_axes`), None for rank < 2.
        direction: Features and network in one: `compute_direction`, or a faster equal of it.

    Returns:
        The un-negated steps, of the gradients' shape.
    """
    config = network.config
    if grad.numel() == 0:
        return torch.zeros_like(grad)
    grad = grad.clamp(-accumulators_lib.GRAD_CLIP, accumulators_lib.GRAD_CLIP)
    accumulators_lib.update(accumulators, grad, axes, config)
    seen, raw = accumulators, None
    if config.bias_correction and count is not None:
        seen, raw = accumulators_lib.unbias(accumulators, count, config), accumulators
    inputs = features.make_inputs(grad, param, seen, axes, raw=raw)
    step, magnitude = (direction or compute_direction)(inputs, network, axes is not None)
    return _finish(_scale_by_magnitude(step, magnitude, config), param, seen, axes, config)


def compute_direction(inputs: Inputs, network: Network, factored: bool) -> tuple[Tensor, Tensor | None]:
    """Direction and magnitude of every element; see `mlp.compute`."""
    config = network.config
    names = [name for name, _ in config.feature_groups(1 + factored)]
    groups = features.compute(inputs, names, config)
    scales = mlp.input_scales(groups) if config.normalize_input else None
    return mlp.compute(groups, scales, network.numbers, config)


def _scale_by_magnitude(direction: Tensor, magnitude: Tensor | None, config: RuleConfig) -> Tensor:
    if magnitude is None:
        return direction
    if config.aggregate_mag:
        magnitude = magnitude.mean(_whole(magnitude), keepdim=True)
    return direction * torch.exp(config.exp_mult * magnitude)


def _finish(
    step: Tensor, param: Tensor, accumulators: Accumulators, axes: Axes | None, config: RuleConfig
) -> Tensor:
    if config.param_scale_mult:
        step = step * torch.sqrt((param * param).mean(_whole(param), keepdim=True) + mlp.NORM_EPS)
    if config.orthogonalize and axes is not None:
        step = orthogonalize.compute(step, config)
    if config.normalize_output:
        step = step * torch.rsqrt(mlp.mean_square(step) + mlp.NORM_EPS)
    if config.rmsmult != 1.0:
        step = step * config.rmsmult
    if config.precondition_output:
        step = step * torch.rsqrt(accumulators.rms[-1] + PRECONDITION_EPS)
    return step


def _whole(tensor: Tensor) -> tuple[int, ...]:
    """All axes but the stack's."""
    return tuple(range(1, tensor.ndim))
