"""Features → direction: the network, applied to every element of an array.

Source: arXiv 2602.19142, section 3: 30 → 8 → 8 → 3 with ReLU, element by element.

Each channel `x` enters divided by its root mean square over the last two axes. Instead of dividing
the arrays, `rsqrt(mean(x²) + 1e-9)` multiplies the channel's row of the first layer, and channels
that are vectors are summed as vectors before they are broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.config import RuleConfig
from celo2.jax.features import FeatureGroups

__all__ = ["NORM_EPS", "compute", "mean_square"]

NORM_EPS = 1e-9  # under the root of both normalisers, of the input channels and of the step

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def mean_square(array: Array) -> Array:
    """Mean of squares over the last two axes (one for a vector, none for a scalar), axes kept."""
    axes = tuple(range(max(array.ndim - 2, 0), array.ndim))
    return jnp.mean(array * array, axis=axes, keepdims=True)


def compute(
    groups: FeatureGroups, weights: Mapping[str, Array], config: RuleConfig
) -> tuple[Array, Array | None]:
    """Direction and magnitude of every element.

    Args:
        groups: Weight name → channels, each of a shape that broadcasts to the parameter's.
        weights: The network's arrays by name, of the shapes of `RuleConfig.weight_shapes`.
        config: Sizes, activation, input normalisation.

    Returns:
        The direction, of the parameter's shape, and the magnitude, None when `exp_mult` is 0: an
        output that is not used is not computed.
    """
    activation = _ACTIVATIONS[config.mlp_activation]
    entries = {name: _entries(array) for name, array in weights.items()}
    hidden = [activation(unit) for unit in _first_layer(groups, entries, config)]
    for layer in range(1, config.ff_hidden_layers):
        hidden = [activation(unit) for unit in _layer(hidden, entries, layer, config.ff_hidden_size)]
    direction, *magnitude = _layer(hidden, entries, config.ff_hidden_layers, 2 if config.exp_mult else 1)
    return direction, magnitude[0] if magnitude else None


def _entries(array: Array | np.ndarray) -> Any:
    """What `[i][j]` picks scalars from: plain numbers for finished weights, rows while theta is learned.

    Numbers become constants of the compiled loop, which then runs faster. Traced weights are picked
    from inside the loop: as separate arrays they would be hundreds of its arguments.
    """
    if isinstance(array, np.ndarray):
        return array.tolist()
    return [array[i] for i in range(len(array))] if array.ndim == 2 else array


def _first_layer(groups: FeatureGroups, entries: Mapping[str, Any], config: RuleConfig) -> list[Array]:
    channels = [
        (channel, entries[name][index], _input_scale(channel, config))
        for name, group in groups.items()
        for index, channel in enumerate(group)
    ]
    channels.sort(key=lambda item: item[0].size)  # vectors first: they are added before broadcasting
    units = []
    for j in range(config.ff_hidden_size):
        sums: dict[tuple[int, ...], Array] = {}
        for channel, row, scale in channels:
            term = channel * (row[j] if scale is None else row[j] * scale)
            sums[channel.shape] = sums[channel.shape] + term if channel.shape in sums else term
        vectors, *full = sums.values()
        units.append(sum(full, start=vectors + entries["b0"][j]))
    return units


def _input_scale(channel: Array, config: RuleConfig) -> Array | None:
    return jax.lax.rsqrt(mean_square(channel) + NORM_EPS) if config.normalize_input else None


def _layer(inputs: list[Array], entries: Mapping[str, Any], layer: int, num_units: int) -> list[Array]:
    weight, bias = entries[f"w{layer}"], entries[f"b{layer}"]
    units = []
    for j in range(num_units):
        total: Array = bias[j]
        for i, x in enumerate(inputs):
            total = total + x * weight[i][j]
        units.append(total)
    return units
