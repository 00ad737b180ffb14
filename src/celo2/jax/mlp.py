"""The network, which maps the features of each element of an array to its direction.

Source: arXiv 2602.19142, section 3: 30 → 8 → 8 → 3 with ReLU, elementwise.

Each channel `x` is divided by its root mean square over the last two axes: it is multiplied by
`rsqrt(mean(x²) + 1e-9)` as it enters the first layer, so the network is one pass over the array.
Vector channels go through the first layer as vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.config import RuleConfig
from celo2.constants import NORM_EPS
from celo2.jax.features import FeatureGroups

# Largest number of hidden units for which concrete weights are numbers in the program. With 16 and
# `runtime.compiler_options`, LLVM used all memory for a program with a small vector (commit 667bd58); between
# 8 and 16 nothing is recorded.
NUMBERS_UP_TO = 8

InputScales = dict[str, tuple[Array, ...]]  # weight name → scale of each channel
Units = Array | Sequence[Array]  # added to each hidden unit: `(units, ...)`, or as many arrays

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}


class _Channel(NamedTuple):
    """An input of the first layer: its values, its row of the weights, and its scale (None: 1)."""

    values: Array
    row: Any
    scale: Array | None


def mean_square(array: Array) -> Array:
    """Computes the mean square over the last two axes (vector: one, scalar: none), keeping dimensions."""
    axes = tuple(range(max(array.ndim - 2, 0), array.ndim))
    return jnp.mean(array * array, axis=axes, keepdims=True)


def mean_squares(channels: Sequence[Array]) -> Array:
    """Computes the stacked `mean_square` of arrays of one shape in one reduction with as many operands.

    The operands are not stacked, so each is computed inside the reduction and never stored.
    """
    shape = channels[0].shape
    if not shape:
        return jnp.square(jnp.stack(channels))
    squares = tuple(channel * channel for channel in channels)
    zeros = tuple(jnp.zeros((), square.dtype) for square in squares)
    sums = jnp.stack(jax.lax.reduce(squares, zeros, _add_each, (len(shape) - 1,)))[..., None]
    rows = (-2,) if len(shape) > 1 else ()
    return jnp.sum(sums, axis=rows, keepdims=True) / math.prod(shape[-2:])


def multiply_add(values: Array, weight: Any, total: Any) -> Array:
    """Computes `total + values · weight`, the one operation of every layer."""
    return total + values * weight


def normalizer(mean_square: Array) -> Array:
    """Returns the factor that scales an array of this mean square to root mean square 1."""
    return jax.lax.rsqrt(mean_square + NORM_EPS)


def input_scales(groups: FeatureGroups, normalize: Callable[[Array], Array] = normalizer) -> InputScales:
    """Computes `rsqrt(mean(x²) + 1e-9)` of each channel, over the last two axes.

    Channels of one shape are reduced together, in one pass over their inputs.

    Args:
        groups: Weight name → channels.
        normalize: Maps mean squares over the last two axes, stacked over channels, to scales; earlier rules
            use a function other than `normalizer`.
    """
    by_shape: dict[tuple[int, ...], list[Array]] = {}
    for group in groups.values():
        for channel in group:
            by_shape.setdefault(channel.shape, []).append(channel)
    scales = {shape: iter(normalize(mean_squares(channels))) for shape, channels in by_shape.items()}
    return {name: tuple(next(scales[channel.shape]) for channel in group) for name, group in groups.items()}


def compute(
    groups: FeatureGroups,
    scales: InputScales | None,
    weights: Mapping[str, Array],
    config: RuleConfig,
    *,
    vectors: Sequence[Units] = (),
    add: Callable[[Array, Any, Any], Array] = multiply_add,
) -> tuple[Array, Array | None]:
    """Computes the direction and magnitude of each element.

    Args:
        groups: Weight name → channels, each of a shape that broadcasts to the parameter's.
        scales: The result of `input_scales`; None: the channels are not scaled.
        weights: The network's arrays by name, of the shapes of `RuleConfig.weight_shapes`.
        config: The options: sizes, activation.
        vectors: The contributions of vector channels to each hidden unit, from `vector_units`, if
            `groups` does not contain these channels.
        add: `multiply_add`, or a function that computes it in one instruction.

    Returns:
        The direction, of the parameter's shape, and the magnitude, or None when `exp_mult` is 0: unused
        outputs are not computed.
    """
    activation = _ACTIVATIONS[config.mlp_activation]
    entries = {name: _entries(array) for name, array in weights.items()}
    by_shape = _by_shape(groups, scales, weights)
    full = by_shape.pop(max(by_shape, key=np.prod))
    vectors = (*vectors, *map(_vector_units, by_shape.values()))
    num_layers, num_outputs = config.ff_hidden_layers, config.num_outputs_read
    widths = [config.ff_hidden_size] * num_layers + [num_outputs]
    units = _first_layer(full, vectors, entries["b0"], widths[0], add)
    for layer, width in enumerate(widths[1:], start=1):
        units = _layer(list(map(activation, units)), entries, layer, width, add)
    return units[0], units[1] if config.exp_mult else None


def compute_by_matmul(
    groups: FeatureGroups, scales: InputScales | None, weights: Mapping[str, Array], config: RuleConfig
) -> tuple[Array, Array | None]:
    """Computes the same as `compute` by matrix products, which store all channels and units.

    Use it for derivatives with respect to the weights: through `compute` they would be a sum over the array
    for each weight, each compiled as a separate loop that recomputes its summands.
    """
    activation, num_layers = _ACTIVATIONS[config.mlp_activation], config.ff_hidden_layers
    vectors = [_vector_units(channels) for channels in _by_shape(groups, scales, weights).values()]
    num_dims = vectors[0].ndim - 1
    units = sum(vectors[1:], start=vectors[0]) + _align(weights["b0"], num_dims)
    for layer in range(1, num_layers + 1):
        products = jnp.tensordot(
            weights[f"w{layer}"], activation(units), axes=(0, 0), precision=jax.lax.Precision.HIGHEST
        )
        units = products + _align(weights[f"b{layer}"], num_dims)
    return units[0], units[1] if config.exp_mult else None


def _align(bias: Array, num_dims: int) -> Array:
    """Returns the bias of each unit as `(units, 1, …)`."""
    return jnp.asarray(bias).reshape(-1, *(1,) * num_dims)


def make_opaque(weights: Mapping[str, Any], config: RuleConfig) -> Mapping[str, Any]:
    """Hides the concrete weights of a large network from XLA's optimizations; returns others unchanged.

    Where sums may be reordered (`runtime.compiler_options`), LLVM rearranges those of a layer with
    constant weights, and from 16 units on this needs more memory than a machine has.
    """
    if config.ff_hidden_size <= NUMBERS_UP_TO:
        return weights
    return {
        name: jax.lax.optimization_barrier(jnp.asarray(array)) if isinstance(array, np.ndarray) else array
        for name, array in weights.items()
    }


def vector_units(
    groups: FeatureGroups, scales: InputScales | None, weights: Mapping[str, Array]
) -> list[Array]:
    """Computes vector channels' contributions to each hidden unit, one array `(units, *shape)` per shape."""
    return [_vector_units(channels) for channels in _by_shape(groups, scales, weights).values()]


def _add_each(left: tuple[Array, ...], right: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(jnp.add, left, right))


def _entries(array: Array | np.ndarray) -> Any:
    """Returns the weights for indexing `[i][j]`: numbers if concrete, rows while theta is learned.

    Numbers become constants of the compiled loop, which then runs faster. Traced weights are indexed
    inside the loop: as separate arrays they would be hundreds of loop arguments.
    """
    if isinstance(array, np.ndarray):
        return array.tolist()
    return [array[i] for i in range(len(array))] if array.ndim == 2 else array


def _first_layer(
    channels: Sequence[_Channel],
    vectors: Sequence[Units],
    bias: Any,
    width: int,
    add: Callable[[Array, Any, Any], Array],
) -> list[Array]:
    inputs = [c.values if c.scale is None else c.values * c.scale for c in channels]
    units = []
    for j in range(width):
        total: Array = sum((vector[j] for vector in vectors), start=bias[j])
        for values, channel in zip(inputs, channels, strict=True):
            total = add(values, channel.row[j], total)
        units.append(total)
    return units


def _by_shape(
    groups: FeatureGroups, scales: InputScales | None, weights: Mapping[str, Array]
) -> dict[tuple[int, ...], list[_Channel]]:
    by_shape: dict[tuple[int, ...], list[_Channel]] = {}
    for name, group in groups.items():
        for index, values in enumerate(group):
            scale = None if scales is None else scales[name][index]
            by_shape.setdefault(values.shape, []).append(_Channel(values, weights[name][index], scale))
    return by_shape


def _vector_units(channels: Sequence[_Channel]) -> Array:
    """Computes the contributions of vector channels of one shape to each hidden unit, `(units, *shape)`.

    It is a matrix product, since a compiler that fused these sums into the pass over the array would
    repeat them for each element.
    """
    values = jnp.stack([c.values if c.scale is None else c.values * c.scale for c in channels])
    rows = jnp.stack([jnp.asarray(c.row, values.dtype) for c in channels])
    return jnp.tensordot(rows, values, axes=(0, 0), precision=jax.lax.Precision.HIGHEST)


def _layer(
    inputs: list[Array],
    entries: Mapping[str, Any],
    layer: int,
    num_units: int,
    add: Callable[[Array, Any, Any], Array],
) -> list[Array]:
    weight, bias = entries[f"w{layer}"], entries[f"b{layer}"]
    units = []
    for j in range(num_units):
        total: Array = bias[j]
        for i, x in enumerate(inputs):
            total = add(x, weight[i][j], total)
        units.append(total)
    return units
