"""Names, nests and identifies the arrays of a network, and checks that they fit its options.

Only names and shapes are used, so the arrays may be traced.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from celo2.config import FEATURES, Feature, RuleConfig, Schema
from celo2.zoo.specs import MEMBERS

Shapes = Mapping[str, tuple[int, ...]]

MAX_ARRAYS = 256  # the largest network of the zoo has 33
KNOWN_SHARE = 0.5  # share of matching arrays above which a damaged tree is identified as an optimizer's

_GROUP = re.compile(r"w0__\d+")
_DECAYS = {
    "one": "",
    "momentum": " as in initial_momentum_decays",
    "rms": " as in initial_rms_decays",
    "adafactor": " as in initial_adafactor_decays",
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the arrays of nested dicts by name, the keys joined by "/".

    Raises:
        ValueError: A key is not text, a leaf is not an array, two arrays share a name, or there are too many.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ValueError(f"expected names as keys, found {key!r:.80}.")
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found = flatten(value, f"{name}/")
        elif hasattr(value, "shape"):
            found = {name: value}
        else:
            raise ValueError(f"{name!r:.80} is a {type(value).__name__}, expected an array.")
        twice = found.keys() & flat.keys()
        if twice:
            raise ValueError(f"two arrays are named {min(twice):.80}.")
        flat |= found
    if len(flat) > MAX_ARRAYS:
        raise ValueError(f"found {len(flat)} arrays, expected at most {MAX_ARRAYS}.")
    return flat


def flat_arrays(tree: Mapping[str, Any], schema: type[Schema]) -> dict[str, Any]:
    """Returns a network's arrays by name, nested as in the public implementation or not at all.

    Raises:
        ValueError: The tree's levels differ from `schema.levels`; see also `flatten`.
    """
    levels = schema.levels
    if levels and (levels[0] in tree or any(isinstance(value, Mapping) for value in tree.values())):
        whole = tree
        for level in levels:
            if not isinstance(tree, Mapping) or set(tree) != {level}:
                raise ValueError(_wrong_tree(whole, levels))
            tree = tree[level]
    if not isinstance(tree, Mapping) or not tree:
        names = list(schema().weight_shapes())
        raise ValueError(
            f"not weights of {schema.kind}: expected arrays named {names[0]} … {names[-1]}, "
            f"found {tree!r:.80}."
        )
    return flatten(tree)


def _wrong_tree(tree: Mapping[str, Any], levels: tuple[str, ...]) -> str:
    holds = " that holds ".join(map(repr, levels))
    message = f"not Celo2 weights: expected one entry {holds}, found {_listed(map(repr, tree))}"
    kind = identify(tree)
    if kind is not None:
        return f"{message}: {belongs_to(kind)}."
    if "rnn_params" in tree or "lstm_init_state" in tree:
        return f"{message}; an LSTM scheduler belongs to Celo, an earlier optimizer with other weights."
    return f"{message}."


def belongs_to(kind: str) -> str:
    """Describes in a clause which optimizer the weights belong to, and what loads them."""
    if kind == RuleConfig.kind:
        return "these are weights of Celo2; load them with celo2.load_checkpoint"
    return (
        f"these are weights of {kind!r}, which came before; load them with celo2.zoo.load_weights, or see "
        f"celo2.zoo.make({kind!r}, …)"
    )


def as_tree(arrays: Mapping[str, Any], schema: type[Schema] = Schema) -> dict[str, Any]:
    """Nests arrays by name as the public files do: the inverse of `flat_arrays`.

    Example:
        >>> as_tree({"rnn_params/rnn/linear/w": 1})
        {'rnn_params': {'rnn/linear': {'w': 1}}}
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, last = (*schema.levels, *name.split("/"))
        node = tree
        for level in filter(None, (*above[:1], "/".join(above[1:]))):
            node = node.setdefault(level, {})
        node[last] = array
    return tree


def read_shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array by name."""
    return {name: tuple(value.shape) for name, value in arrays.items()}


def find_kind(shapes: Shapes) -> str | None:
    """Returns the zoo optimizer that most of the arrays fit, or None if too few fit any.

    The arrays may be damaged or incomplete; `check_fit` reports what is wrong with them.
    """
    scores = {kind: _share_that_fits(shapes, member) for kind, member in MEMBERS.items()}
    best = max(scores, key=lambda kind: scores[kind])
    return best if scores[best] > KNOWN_SHARE else None


def identify(tree: Mapping[str, Any]) -> str | None:
    """Applies `find_kind` to any tree, nested or flat; returns None for trees without named arrays."""
    try:
        return find_kind(read_shapes(flatten(tree)))
    except ValueError:
        return None


def _share_that_fits(shapes: Shapes, schema: type[Schema]) -> float:
    """Returns the share of arrays with the right name and shape among those present or expected."""
    try:
        expected = schema(**schema.sizes_of(shapes)).weight_shapes()
    except ValueError:
        return 0.0
    fitting = sum(shapes.get(name) == shape for name, shape in expected.items())
    return fitting / len(expected.keys() | shapes.keys())


def check_fit(shapes: Shapes, config: Schema) -> None:
    """Raises a ValueError that states what to change unless the arrays fit the options.

    Sizes are checked first: they bound the work of every later check by the number of arrays.
    """
    for option, found in config.sizes_of(shapes).items():
        if found != getattr(config, option):
            raise ValueError(f"the arrays have {option}={found}, expected {getattr(config, option)}.")
    if isinstance(config, RuleConfig):
        _check_groups(shapes, config)
    check_shapes(shapes, config.weight_shapes(), f"weights of {config.kind}")


def check_shapes(shapes: Shapes, expected: Shapes, whose: str) -> None:
    """Raises a ValueError that names the arrays that are missing, unexpected or misshapen.

    Args:
        shapes: The shapes found, by name.
        expected: The expected shapes, by name.
        whose: The subject of the message, "weights of celo2".
    """
    missing, extra = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    if missing or extra:
        raise ValueError(
            f"{whose} have {len(expected)} arrays: missing "
            f"{_listed(sorted(missing)) or 'none'}, unexpected {_listed(sorted(extra)) or 'none'}."
        )
    wrong = [name for name, shape in expected.items() if shapes[name] != shape]
    if wrong:
        first, more = wrong[0], f", and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise ValueError(f"{whose}: {first} has shape {shapes[first]}, expected {expected[first]}{more}.")


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
    """Describes the groups with a wrong number of rows, one for each list of decays."""
    wrong = {
        feature.channels: f"{name} ({feature.name}: {have}, expected {want}{_DECAYS[feature.channels]})"
        for (name, feature), have, want in reversed(list(zip(groups, found, expected, strict=True)))
        if have != want
    }
    return " and ".join(reversed(wrong.values()))


def _group_rows(shapes: Shapes) -> tuple[int, ...]:
    """Returns the row counts of `w0__0`, `w0__1`, … in order; a gap or a wrong rank is an error."""
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
    """Returns feature switches that give these rows under the config's decays, nearest first."""
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
