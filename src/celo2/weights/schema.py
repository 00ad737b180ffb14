"""Checks that arrays of weights fit the options of the rule.

Only names and shapes are used, so the arrays may be traced.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from celo2.config import FEATURES, Feature, RuleConfig

Shapes = Mapping[str, tuple[int, ...]]

MAX_ARRAYS = 256  # the default network has 19

_OUTER, _INNER = "ff_mod_stack", "~"  # the two levels around the arrays in the public implementation
_GROUP = re.compile(r"w0__\d+")
_LAYER = re.compile(r"w[1-9]\d*")
_DECAYS = {
    "one": "",
    "momentum": " as in initial_momentum_decays",
    "rms": " as in initial_rms_decays",
    "adafactor": " as in initial_adafactor_decays",
}


def flat_arrays(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a tree by name.

    Args:
        tree: `{"ff_mod_stack": {"~": {"w0__0": …}}}` (upstream) or `{"w0__0": …}`.

    Raises:
        ValueError: The tree has other entries; the message recognises those of the optimizers in the zoo.
    """
    if any(isinstance(value, Mapping) for value in tree.values()) or _OUTER in tree:
        inner = tree.get(_OUTER)
        if set(tree) != {_OUTER} or not isinstance(inner, Mapping) or set(inner) != {_INNER}:
            raise ValueError(_wrong_tree(tree))
        tree = inner[_INNER]
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError(f"not Celo2 weights: expected arrays named w0__0 … b2, found {tree!r:.80}.")
    for name, value in tree.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise ValueError(
                f"not Celo2 weights: {name!r:.80} is a {type(value).__name__}, expected an array."
            )
    return dict(tree)


def _wrong_tree(tree: Mapping[str, Any]) -> str:
    from celo2.zoo.names import (
        identify,  # imported here: it imports celo2.weights, and so this module
    )

    found = _listed(map(repr, tree))
    message = f"not Celo2 weights: expected one entry {_OUTER!r} that holds {_INNER!r}, found {found}"
    kind = identify(tree)
    if kind is not None:
        return (
            f"{message}: these are weights of {kind!r}, which came before; see celo2.zoo.make({kind!r}, …)."
        )
    if "rnn_params" in tree or "lstm_init_state" in tree:
        return f"{message}; an LSTM scheduler belongs to Celo, an earlier optimizer with other weights."
    return f"{message}."


def read_shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array by name."""
    return {name: tuple(value.shape) for name, value in arrays.items()}


def read_sizes(shapes: Shapes) -> dict[str, int]:
    """Returns the options that the shapes determine: `ff_hidden_size` and `ff_hidden_layers`.

    Raises:
        ValueError: There are too many arrays, or no one-dimensional bias `b0` to read the width from.
    """
    if len(shapes) > MAX_ARRAYS:
        raise ValueError(f"not Celo2 weights: found {len(shapes)} arrays, expected at most {MAX_ARRAYS}.")
    bias = shapes.get("b0")
    if bias is None or len(bias) != 1:
        found = f"arrays {_listed(shapes)}" if bias is None else f"shape {bias}"
        raise ValueError(f"not Celo2 weights: expected an array b0 of shape (hidden size,), found {found}.")
    return {"ff_hidden_size": bias[0], "ff_hidden_layers": sum(bool(_LAYER.fullmatch(n)) for n in shapes)}


def check_fit(shapes: Shapes, config: RuleConfig) -> None:
    """Raises a ValueError that states what to change unless the arrays fit the options.

    Sizes are checked first: they bound the work of every later check by the number of arrays.
    """
    for option, found in read_sizes(shapes).items():
        if found != getattr(config, option):
            raise ValueError(f"the arrays have {option}={found}, expected {getattr(config, option)}.")
    _check_groups(shapes, config)
    expected = config.weight_shapes()
    missing, extra = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    if missing or extra:
        raise ValueError(
            f"expected the arrays {_listed(expected, 40)}: missing {_listed(sorted(missing)) or 'none'}, "
            f"unexpected {_listed(sorted(extra)) or 'none'}."
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(f"{name} has shape {shapes[name]}, expected {shape}.")


def _check_groups(shapes: Shapes, config: RuleConfig) -> None:
    """Checks the input groups against the enabled features: their number, then the rows of each."""
    found = _group_rows(shapes)
    groups = config.feature_groups(2)
    expected = tuple(config.num_channels(feature) for _, feature in groups)
    if found == expected:
        return
    choices = _feature_choices(found, config)
    if choices:
        remedy = f"features of these numbers of rows: {'; or '.join(choices)}"
    elif len(found) == len(expected):
        remedy = f"the rows differ in {_wrong_decays(groups, found, expected)}"
    else:
        remedy = "give the features (with_…=False) and the decays that the weights were trained with"
    raise ValueError(
        f"the arrays have {len(found)} input groups of {found} rows, expected {len(expected)} of {expected} "
        f"for the enabled features; {remedy}."
    )


def _wrong_decays(
    groups: tuple[tuple[str, Feature], ...], found: tuple[int, ...], expected: tuple[int, ...]
) -> str:
    """Describes the groups whose numbers of rows are wrong, one for each list of decays."""
    wrong = {
        feature.channels: f"{name} ({feature.name}: {have}, expected {want}{_DECAYS[feature.channels]})"
        for (name, feature), have, want in reversed(list(zip(groups, found, expected, strict=True)))
        if have != want
    }
    return " and ".join(reversed(wrong.values()))


def _group_rows(shapes: Shapes) -> tuple[int, ...]:
    """Returns the numbers of rows of `w0__0`, `w0__1`, … in order; a gap or a wrong rank is an error."""
    count = sum(bool(_GROUP.fullmatch(name)) for name in shapes)
    rows = []
    for index in range(count):
        shape = shapes.get(f"w0__{index}")
        if shape is None or len(shape) != 2:
            found = "nothing" if shape is None else f"shape {shape}"
            raise ValueError(f"expected w0__{index} with shape (channels, hidden size), found {found}.")
        rows.append(shape[0])
    return tuple(rows)


def _feature_choices(rows: tuple[int, ...], config: RuleConfig, limit: int = 3) -> list[str]:
    """Returns feature switches that give these rows under the config's decays, the nearest first."""
    options = tuple(dict.fromkeys(feature.option for feature in FEATURES))
    channels = [(feature.option, config.num_channels(feature)) for feature in FEATURES]
    fitting = []
    for values in itertools.product((True, False), repeat=len(options)):
        enabled = dict(zip(options, values, strict=True))
        if rows == tuple(count for option, count in channels if enabled[option]):
            changes = [f"{name}={value}" for name, value in enabled.items() if value != getattr(config, name)]
            fitting.append(changes)
    return [", ".join(changes) for changes in sorted(fitting, key=len)[:limit]]


def _listed(names: Iterable[str], limit: int = 8) -> str:
    """Formats the first names and the number of the others."""
    names = [f"{name:.80}" for name in names]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
