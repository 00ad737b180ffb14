"""Flattens trees of arrays and identifies the optimizer they belong to.

Only names and shapes are used, so the arrays may be traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celo2.zoo.specs import MEMBERS, MemberConfig

Shapes = Mapping[str, tuple[int, ...]]

MAX_ARRAYS = 256  # the largest optimizer has 33
KNOWN_SHARE = 0.5  # share of an optimizer's arrays above which a match identifies a damaged tree as its own


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
            raise ValueError(f"{name:.80} is a {type(value).__name__}, expected an array.")
        twice = found.keys() & flat.keys()
        if twice:
            raise ValueError(f"two arrays are named {min(twice):.80}.")
        flat |= found
    if len(flat) > MAX_ARRAYS:
        raise ValueError(f"found {len(flat)} arrays, expected at most {MAX_ARRAYS}.")
    return flat


def as_tree(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Nests arrays by name as the public files do: the inverse of `flatten` for `MemberConfig.array_specs`.

    Example:
        >>> as_tree({"rnn_params/rnn/linear/w": 1})
        {'rnn_params': {'rnn/linear': {'w': 1}}}
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        first, *middle = name.split("/")
        if not middle:
            tree[name] = array
            continue
        *module, last = middle
        node = tree.setdefault(first, {})
        node = node.setdefault("/".join(module), {}) if module else node
        node[last] = array
    return tree


def read_shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array by name."""
    return {name: tuple(value.shape) for name, value in arrays.items()}


def find_kind(shapes: Shapes) -> str | None:
    """Returns the optimizer that most of the arrays fit, or None if too few fit any.

    The arrays may be damaged or incomplete; `check_fit` reports what is wrong with them.
    """
    scores = {kind: _share_that_fits(shapes, member) for kind, member in MEMBERS.items()}
    best = max(scores, key=lambda kind: scores[kind])
    return best if scores[best] > KNOWN_SHARE else None


def identify(tree: Mapping[str, Any]) -> str | None:
    """Applies `find_kind` to any tree, nested or flat; None for one without named arrays."""
    try:
        return find_kind(read_shapes(flatten(tree)))
    except ValueError:
        return None


def _share_that_fits(shapes: Shapes, member: type[MemberConfig]) -> float:
    """Returns the share of arrays with the right name and shape among those present or expected."""
    try:
        expected = member(**member.sizes_of(shapes)).weight_shapes()
    except ValueError:
        return 0.0
    fitting = sum(shapes.get(name) == shape for name, shape in expected.items())
    return fitting / len(expected.keys() | shapes.keys())


def check_fit(shapes: Shapes, config: MemberConfig) -> None:
    """Raises a ValueError that states what was expected and found unless the arrays fit the config."""
    expected = config.weight_shapes()
    missing, extra = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    if missing or extra:
        raise ValueError(
            f"weights of {config.kind} have {len(expected)} arrays: missing {_listed(missing)}, unexpected "
            f"{_listed(extra)}."
        )
    wrong = [name for name, shape in expected.items() if shapes[name] != shape]
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"weights of {config.kind}: {first} has shape {shapes[first]}, expected {expected[first]}"
            + (f", and {len(wrong) - 1} more are wrong." if len(wrong) > 1 else ".")
        )


def _listed(names: Iterable[str], limit: int = 5) -> str:
    listed = sorted(f"{name:.80}" for name in names)
    rest = len(listed) - limit
    return (", ".join(listed[:limit]) or "none") + (f" and {rest} more" if rest > 0 else "")
