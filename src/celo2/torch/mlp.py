"""The network, which maps the features of every element of a tensor to its direction.

Source: arXiv 2602.19142, section 3: 30 → 8 → 8 → 3 with ReLU, element by element.

Each channel `x` is divided by its root mean square over the last two axes. Instead of dividing the tensors,
`rsqrt(mean(x²) + 1e-9)` multiplies the channel's row of the first layer. This is the plain version, unit by
unit; the fast versions are in `kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import NORM_EPS
from celo2.torch.features import FeatureGroups

InputScales = dict[str, tuple[Tensor, ...]]  # weight name → scale of each channel

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}


def mean_square(tensor: Tensor) -> Tensor:
    """Computes the mean square over the last two axes, which are kept."""
    return (tensor * tensor).mean((-2, -1), keepdim=True)


def normalizer(mean_square: Tensor) -> Tensor:
    """Returns the factor that scales a tensor with this mean square to root mean square 1."""
    return torch.rsqrt(mean_square + NORM_EPS)


def input_scales(groups: FeatureGroups) -> InputScales:
    """Computes `rsqrt(mean(x²) + 1e-9)` of every channel, over the last two axes."""
    return {
        name: tuple(normalizer(mean_square(channel)) for channel in group) for name, group in groups.items()
    }


def compute(
    groups: FeatureGroups,
    scales: InputScales | None,
    weights: Mapping[str, Any],
    config: RuleConfig,
    *,
    vectors: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor | None]:
    """Computes the direction and magnitude of every element.

    Args:
        groups: Weight name → channels, each broadcastable to the parameter's shape.
        scales: The result of `input_scales`; None: the channels enter as they are.
        weights: The network's arrays by name, as nested lists of numbers, with the shapes of
            `RuleConfig.weight_shapes`.
        config: The options: sizes, activation.
        vectors: The contributions of vector channels and of the bias to each unit of the first layer,
            `(units, ...)`, if `groups` does not contain them.

    Returns:
        The direction, in the parameter's shape, and the magnitude; None if `exp_mult` is 0, since unused
        outputs are not computed.
    """
    activation = _ACTIVATIONS[config.mlp_activation]
    units, num_outputs = _first_layer(groups, scales, weights, vectors), config.num_outputs_read
    widths = [config.ff_hidden_size] * (config.ff_hidden_layers - 1) + [num_outputs]
    for layer, width in enumerate(widths[: config.ff_hidden_layers], start=1):
        units = _layer(list(map(activation, units)), weights, layer, width)
    return units[0], units[1] if config.exp_mult else None


def _first_layer(
    groups: FeatureGroups,
    scales: InputScales | None,
    weights: Mapping[str, Any],
    vectors: Sequence[Tensor],
) -> list[Tensor]:
    channels = [
        (channel, row, None if scales is None else scales[name][index])
        for name, group in groups.items()
        for index, (channel, row) in enumerate(zip(group, weights[name], strict=True))
    ]
    channels.sort(key=lambda entry: entry[0].numel())  # vectors are summed before they broadcast
    units = []
    for j, bias in enumerate(weights["b0"]):
        total: Any = sum(vector[j] for vector in vectors) if vectors else bias
        for values, row, scale in channels:
            total = total + values * (row[j] if scale is None else row[j] * scale)
        units.append(total)
    return units


def _layer(inputs: list[Tensor], weights: Mapping[str, Any], layer: int, num_units: int) -> list[Tensor]:
    weight, bias = weights[f"w{layer}"], weights[f"b{layer}"]
    units = []
    for j in range(num_units):
        total: Any = bias[j]
        for i, x in enumerate(inputs):
            total = total + x * weight[i][j]
        units.append(total)
    return units
