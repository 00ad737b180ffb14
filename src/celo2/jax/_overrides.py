"""What the user says about a leaf's label: by a callable, by regular expressions, or by a tree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import jax

from celo2.config import nearest_name
from celo2.jax._leaves import named_leaves

__all__ = ["LABELS", "check_label", "choose_labels"]

LABELS = ("celo2", "adamw")


def check_label(label: Any, source: str) -> str:
    """Returns a valid label; raises a ValueError that names the valid ones for any other."""
    if not isinstance(label, str) or label not in LABELS:
        hint = nearest_name(label, LABELS) if isinstance(label, str) else ""
        raise ValueError(f"unknown label {label!r} for {source}{hint}; valid labels are 'celo2' and 'adamw'.")
    return label


def choose_labels(overrides: Any, named: Sequence[tuple[str, Any]]) -> list[str | None]:
    """The user's label for each leaf `(path, leaf)`, None where the default stays.

    Raises:
        ValueError: For an unknown label, an invalid expression, or an entry that matches no path.
    """
    paths = [path for path, _ in named]
    if overrides is None:
        return [None] * len(paths)
    if callable(overrides) and jax.tree_util.all_leaves([overrides]):  # some modules are callable too
        chosen = [(path, overrides(path, leaf)) for path, leaf in named]
        return [None if label is None else check_label(label, path) for path, label in chosen]
    if _is_patterns(overrides, paths):
        return _choose_by_pattern(overrides, paths)
    return _choose_by_tree(overrides, paths)


def _is_patterns(overrides: Any, paths: Sequence[str]) -> TypeGuard[Mapping[Any, str]]:
    return (
        isinstance(overrides, Mapping)
        and all(isinstance(value, str) for value in overrides.values())
        and not all(any(_is_at(path, str(key)) for path in paths) for key in overrides)
    )


def _is_at(path: str, place: str) -> bool:
    return place in ("", path) or path.startswith(f"{place}/")


def _choose_by_pattern(overrides: Mapping[Any, str], paths: Sequence[str]) -> list[str | None]:
    chosen: list[str | None] = [None] * len(paths)
    for key, label in overrides.items():
        try:
            pattern = re.compile(key)
        except (re.error, TypeError) as error:
            raise ValueError(f"overrides: {key!r} is not a regular expression: {error}.") from error
        check_label(label, f"the pattern {pattern.pattern!r}")
        matches = [index for index, path in enumerate(paths) if pattern.search(path)]
        if not matches:
            _refuse(pattern.pattern, "matches no parameter", paths)
        for index in matches:
            chosen[index] = chosen[index] or label
    return chosen


def _choose_by_tree(overrides: Any, paths: Sequence[str]) -> list[str | None]:
    chosen: list[str | None] = [None] * len(paths)
    for place, label in sorted(named_leaves(overrides), key=lambda entry: len(entry[0])):
        check_label(label, place or "the whole tree")
        matches = [index for index, path in enumerate(paths) if _is_at(path, place)]
        if not matches and place:
            _refuse(place, "is no parameter or module", paths)
        for index in matches:
            chosen[index] = label
    return chosen


def _refuse(entry: str, what: str, paths: Sequence[str]) -> None:
    shown = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
    raise ValueError(
        f"overrides: {entry!r} {what}{nearest_name(entry, paths)}. The paths: {shown or 'none'}."
    )
