"""Applies the user's choices for some parameters, given as regular expressions or a callable."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celo2.config import nearest_name

ALGORITHMS = ("celo2", "adamw")


def check_algorithm(value: Any, source: str, what: str = "algorithm") -> str:
    """Returns the value if it is a valid algorithm, else raises a ValueError that names the valid ones."""
    if not isinstance(value, str) or value not in ALGORITHMS:
        hint = nearest_name(value, ALGORITHMS) if isinstance(value, str) else "."
        raise ValueError(
            f"unknown {what} {value!r} for {source}{hint} Valid {what}s are 'celo2' and 'adamw'."
        )
    return value


def choose(
    choices: Mapping[Any, Any] | Callable[[str, Any], Any] | None,
    named: Sequence[tuple[str, Any]],
    argument: str,
) -> dict[str, Any]:
    """Returns the user's choice for each parameter that has one.

    Args:
        choices: A mapping from regular expressions to choices, tried with `re.search` on the path, where
            the first match wins; or a callable `(path, parameter) → choice`, None for no choice.
        named: All parameters with their paths.
        argument: The name of `choices` in error messages.

    Raises:
        ValueError: An expression is invalid, or matches no path.

    Example:
        >>> choose({"w$": "adamw"}, [("fc/w", None), ("fc/b", None)], "overrides")
        {'fc/w': 'adamw'}
    """
    if choices is None:
        return {}
    if not isinstance(choices, Mapping):
        chosen = {path: choices(path, param) for path, param in named}
        return {path: choice for path, choice in chosen.items() if choice is not None}
    paths, result = [path for path, _ in named], {}
    for key, choice in choices.items():
        try:
            pattern = re.compile(key)
        except (re.error, TypeError) as error:
            raise ValueError(f"{argument}: {key!r} is not a regular expression: {error}.") from error
        matches = [path for path in paths if pattern.search(path)]
        if not matches:
            refuse(argument, pattern.pattern, "matches no parameter", paths)
        result = {**dict.fromkeys(matches, choice), **result}
    return result


def refuse(argument: str, entry: str, what: str, paths: Sequence[str]) -> None:
    """Raises a ValueError that shows the nearest path and the first few paths."""
    shown = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
    raise ValueError(
        f"{argument}: {entry!r} {what}{nearest_name(entry, paths)} The paths: {shown or 'none'}."
    )
