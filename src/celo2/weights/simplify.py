"""Simplifies networks by removing units and features that cannot change a step.

Weights found by a search over few numbers, such as the shipped ones, are mostly zeros. The program for the
smaller network has fewer operations, less memory traffic and a shorter compile time, and computes the same
steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from celo2.config import FEATURES, NUM_OUTPUTS, RuleConfig

_ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}


def simplify(arrays: Mapping[str, Any], config: RuleConfig) -> tuple[dict[str, Any], RuleConfig]:
    """Returns a network with fewer units and features that computes the same steps.

    A hidden unit that no input reaches is a constant, which is folded into the next layer's biases. Units
    that nothing reads are removed, as are features whose weights are all zero. Steps agree wherever the
    features are finite: zero times infinity would be NaN.

    Args:
        arrays: The network's arrays by name, as in `RuleConfig.weight_shapes`.
        config: The options. Options of the accumulators do not change, so that a state fits both networks.

    Returns:
        The arrays and the options. All hidden layers have the width of the widest. The arguments themselves
        are returned if an array is not NumPy's, since its values are not known yet, or if nothing is idle.

    Example:
        >>> from celo2.weights import load_checkpoint
        >>> weights = load_checkpoint("celo2")
        >>> arrays, config = simplify(weights.arrays, weights.config)
        >>> weights.config.ff_hidden_size, config.ff_hidden_size
        (8, 2)
    """
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        return dict(arrays), config
    work = {name: array.astype(np.float64) for name, array in arrays.items()}
    inputs = [name for name, _ in config.feature_groups(2)]
    _fold_constants(work, inputs, config)
    kept = _find_read_units(work, config)
    width = max(max(map(len, kept)), 1) if kept else config.ff_hidden_size
    kept = [_fill(units, width, config.ff_hidden_size) for units in kept] or [np.arange(width)]
    options = {"ff_hidden_size": width, **_switch_off_unread(work, config)}
    smaller = config.replace(**options)
    if smaller == config:
        return dict(arrays), config
    return _take(work, arrays, config, smaller, kept), smaller


def collapse(arrays: Mapping[str, Any], config: RuleConfig) -> tuple[dict[str, Any], RuleConfig]:
    """Returns a network without linear hidden layers that computes the same steps.

    A layer of ReLU units is linear if each of them is. A pair of units with opposite inputs, which the next
    layer reads with opposite weights, contributes w relu(x) - w relu(-x) = w x. In the second and later
    layers, whose inputs are not negative, so is a unit without a negative weight or bias: relu(x) = x. Such a
    layer is merged with the next.

    Args:
        arrays: The network's arrays by name.
        config: The options.

    Returns:
        The arrays and the options: `ff_hidden_layers` is smaller, and `ff_hidden_size` is the number of
        outputs if no hidden layer is left. The arguments themselves are returned if no layer is linear or an
        array is not NumPy's.

    Example:
        >>> from celo2.weights import load_checkpoint
        >>> weights = load_checkpoint("celo2-base")
        >>> collapse(*simplify(weights.arrays, weights.config))[1].ff_hidden_layers
        0
    """
    known = all(isinstance(array, np.ndarray) for array in arrays.values())
    if not known or config.mlp_activation != "relu":
        return dict(arrays), config
    for layer in range(config.ff_hidden_layers):
        names = _input_names(layer, config)
        first = np.concatenate([np.atleast_2d(arrays[name]) for name in names]).astype(np.float64)
        second = _read_columns(layer + 1, arrays, config)
        units = _find_linear_units(first, second, inputs_are_nonnegative=layer > 0)
        if units is not None:
            product = first[:, units] @ second[units]
            product[-1] += arrays[f"b{layer + 1}"]
            merged = dict(zip(names, _split(product, arrays, names), strict=True))
            return collapse(*_remove_layer(layer, arrays, config, merged))
    return dict(arrays), config


def _input_names(layer: int, config: RuleConfig) -> list[str]:
    """Returns the names of a hidden layer's weights and, last, of its bias."""
    weights = [f"w{layer}"] if layer else [name for name, _ in config.feature_groups(2)]
    return [*weights, f"b{layer}"]


def _result_dtype(arrays: Mapping[str, np.ndarray]) -> np.dtype:
    """Returns the dtype of sums and products of the arrays, at least float32."""
    return np.promote_types(np.result_type(*arrays.values()), np.float32)


def _read_columns(layer: int, arrays: Mapping[str, np.ndarray], config: RuleConfig) -> np.ndarray:
    """Returns the weights of the second or a later layer, zero for the outputs that are never read."""
    weight = arrays[f"w{layer}"].astype(np.float64)
    if layer == config.ff_hidden_layers:
        weight[:, config.num_outputs_read :] = 0
    return weight


def _find_linear_units(
    first: np.ndarray, second: np.ndarray, *, inputs_are_nonnegative: bool
) -> list[int] | None:
    """Returns the units of a linear layer, one of each pair; None if some unit is not linear."""
    ends = np.concatenate([first.T, second], axis=1)  # of each unit
    left, units = list(range(len(ends))), []
    while left:
        unit = left.pop()
        mirrored = [other for other in left if not np.any(ends[other] + ends[unit])]
        if mirrored:
            left.remove(mirrored[0])
        elif not inputs_are_nonnegative or np.any(first[:, unit] < 0):
            return None
        units.append(unit)
    return units


def _split(product: np.ndarray, arrays: Mapping[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    """Splits the rows of the merged layer into its arrays; the last row is its bias."""
    ends = np.cumsum([len(arrays[name]) for name in names[:-1]])
    *groups, bias = np.split(product, ends)
    return [array.astype(_result_dtype(arrays)) for array in (*groups, bias[0])]


def _remove_layer(
    removed: int, arrays: Mapping[str, np.ndarray], config: RuleConfig, merged: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], RuleConfig]:
    """Puts the merged layer before those that follow the two that it replaces."""
    num_layers = config.ff_hidden_layers - 1
    earlier = {name: arrays[name] for layer in range(removed) for name in _input_names(layer, config)}
    later = {
        f"{kind}{layer}": arrays[f"{kind}{layer + 1}"]
        for layer in range(removed + 1, num_layers + 1)
        for kind in "wb"
    }
    size = config.ff_hidden_size if num_layers else NUM_OUTPUTS
    return earlier | merged | later, config.replace(ff_hidden_layers=num_layers, ff_hidden_size=size)


def _fold_constants(work: dict[str, np.ndarray], inputs: list[str], config: RuleConfig) -> None:
    """Moves the values of units that no input reaches into the biases of the next layer."""
    activation = _ACTIVATIONS[config.mlp_activation]
    reached = np.any(np.concatenate([work[name] for name in inputs]) != 0, axis=0)
    for layer in range(config.ff_hidden_layers):
        weight, bias = work[f"w{layer + 1}"], work[f"b{layer}"]
        work[f"b{layer + 1}"] = work[f"b{layer + 1}"] + activation(bias[~reached]) @ weight[~reached]
        weight[~reached] = 0
        reached = np.any(weight != 0, axis=0)


def _find_read_units(work: dict[str, np.ndarray], config: RuleConfig) -> list[np.ndarray]:
    """Returns the indices of the units in each hidden layer on which used outputs depend."""
    num_outputs = config.num_outputs_read
    read, kept = np.arange(num_outputs), []
    for layer in reversed(range(config.ff_hidden_layers)):
        read = np.flatnonzero(np.any(work[f"w{layer + 1}"][:, read] != 0, axis=1))
        kept.insert(0, read)
    unread = np.setdiff1d(np.arange(config.ff_hidden_size), read)
    for name, _ in config.feature_groups(2):
        work[name][:, unread] = 0
    return kept


def _fill(units: np.ndarray, width: int, size: int) -> np.ndarray:
    """Pads with units that nothing reads, since all layers have the same width."""
    return np.concatenate([units, np.setdiff1d(np.arange(size), units)[: width - len(units)]])


def _switch_off_unread(work: dict[str, np.ndarray], config: RuleConfig) -> dict[str, bool]:
    """Returns the switches of features that no unit reads; at least one that vectors have stays on."""
    used = {feature.option for name, feature in config.feature_groups(2) if np.any(work[name])}
    if not used & {feature.option for feature in FEATURES if feature.min_rank == 0}:
        used.add(config.feature_groups(0)[0][1].option)
    return {feature.option: False for feature in FEATURES if feature.option not in used}


def _take(
    work: dict[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    config: RuleConfig,
    smaller: RuleConfig,
    kept: list[np.ndarray],
) -> dict[str, np.ndarray]:
    """Selects the arrays of the smaller network, in float32 or better."""
    names = {feature.name: name for name, feature in config.feature_groups(2)}
    taken = {name: work[names[feature.name]][:, kept[0]] for name, feature in smaller.feature_groups(2)}
    taken["b0"] = work["b0"][kept[0]]
    for layer in range(1, config.ff_hidden_layers + 1):
        outputs = kept[layer] if layer < config.ff_hidden_layers else np.arange(work[f"b{layer}"].size)
        taken[f"w{layer}"] = work[f"w{layer}"][kept[layer - 1]][:, outputs]
        taken[f"b{layer}"] = work[f"b{layer}"][outputs]
    return {name: array.astype(_result_dtype(arrays)) for name, array in taken.items()}
