"""Resolves the user's choices for leaves, given as a callable, regular expressions or a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import jax
from optax.contrib import MuonDimensionNumbers

from celo2.jax.routing.params import read_tree
from celo2.routing import check_algorithm, choose
from celo2.routing.choices import refuse
from celo2.routing.dimension_numbers import DimensionNumbers

SPECS = (DimensionNumbers, MuonDimensionNumbers)


def choose_labels(overrides: Any, named: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """Returns the user's labels for some of the leaves `(path, leaf)`.

    Raises:
        ValueError: A label is unknown, an expression is invalid, or an entry matches no path.
    """
    if overrides is None:
        return {}
    paths = [path for path, _ in named]
    if callable(overrides) and jax.tree_util.all_leaves([overrides]):  # some modules are callable too
        chosen = choose(overrides, named, "overrides")
        return {path: check_algorithm(label, path, "label") for path, label in chosen.items()}
    if _is_patterns(overrides, paths, lambda label: isinstance(label, str)):
        for key, label in overrides.items():
            check_algorithm(label, f"the pattern {getattr(key, 'pattern', key)!r}", "label")
        return choose(overrides, named, "overrides")
    entries = [(leaf.path, leaf.value) for leaf in read_tree(overrides)]
    for place, label in entries:
        check_algorithm(label, place or "the whole tree", "label")
    return _choose_by_tree(entries, paths, "overrides")


def choose_numbers(
    numbers: Any, params: Any, named: Sequence[tuple[str, Any]]
) -> tuple[dict[str, Any], set[str]]:
    """Returns the user's dimension numbers for some leaves, and the leaves that they assign to AdamW.

    None in a tree of `DimensionNumbers` means inferred axes; under a regular expression it means the leaf
    as stored, as in `celo2.torch`; and among Optax's `MuonDimensionNumbers` it means AdamW, as there.

    Raises:
        ValueError: An expression is invalid, or an entry matches no path.
    """
    if callable(numbers) and jax.tree_util.all_leaves([numbers]):
        numbers = numbers(params)
    if numbers is None:
        return {}, set()
    paths = [path for path, _ in named]
    if _is_patterns(numbers, paths, _is_spec):
        return choose(numbers, named, "dimension_numbers"), set()
    entries = [(leaf.path, leaf.value) for leaf in read_tree(numbers, is_leaf=_is_spec)]
    by_muon = any(isinstance(spec, MuonDimensionNumbers) for _, spec in entries)
    chosen = _choose_by_tree([entry for entry in entries if entry[1] is not None], paths, "dimension_numbers")
    left = _choose_by_tree([entry for entry in entries if entry[1] is None], paths, "", strict=False)
    return chosen, {path for path in left if path not in chosen} if by_muon else set()


def _is_spec(node: Any) -> bool:
    return node is None or isinstance(node, SPECS) or _is_axes(node)


def _is_axes(node: Any) -> bool:
    """Returns whether a node is a bare sequence of axes, such as (0, 1), which routing rejects."""
    return type(node) in (tuple, list) and bool(node) and all(isinstance(x, int) or _is_axes(x) for x in node)


def _is_patterns(
    choices: Any, paths: Sequence[str], is_choice: Callable[[Any], bool]
) -> TypeGuard[Mapping[Any, Any]]:
    """Returns whether the keys of a mapping are regular expressions: they are not all paths."""
    return (
        isinstance(choices, Mapping)
        and all(map(is_choice, choices.values()))
        and not all(any(_is_at(path, str(key)) for path in paths) for key in choices)
    )


def _is_at(path: str, place: str) -> bool:
    return place in ("", path) or path.startswith(f"{place}/")


def _choose_by_tree(
    entries: Sequence[tuple[str, Any]], paths: Sequence[str], argument: str, *, strict: bool = True
) -> dict[str, Any]:
    """Resolves a tree of choices: a module's entry applies to all of it, and the most specific entry wins."""
    chosen: dict[str, Any] = {}
    for place, choice in sorted(entries, key=lambda entry: len(entry[0])):
        matches = [path for path in paths if _is_at(path, place)]
        if not matches and place and strict:
            refuse(argument, place, "is no parameter or module", paths)
        chosen |= dict.fromkeys(matches, choice)
    return chosen
