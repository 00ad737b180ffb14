"""What a recipe writes as text, read: options of the rule, and values of JSON."""

from __future__ import annotations

import json
from typing import Any

from celo2.config import RuleConfig, nearest_name

__all__ = ["check_type", "parse_rule_options"]


def parse_rule_options(words: tuple[str, ...]) -> dict[str, Any]:
    """Options of the rule by name, from `NAME=VALUE` with values as in JSON.

    Raises:
        ValueError: A word is not of that form, is given twice, is no option, or is what the variant says.
    """
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"expected NAME=VALUE, got {word!r}; ff_hidden_size=16, say.")
        if name == "orthogonalize":
            raise ValueError("orthogonalize is what the variant says.")
        if name in options:
            raise ValueError(f"{name} is given twice.")
        if name not in RuleConfig.option_names():
            raise ValueError(f"unknown option {name!r}{nearest_name(name, RuleConfig.option_names())}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value  # text, which JSON would quote
    return options


def check_type(name: str, value: Any, default: Any) -> None:
    """Compares a value of JSON, which knows no dataclass, with the option's default.

    Raises:
        ValueError: It is of another type.
    """
    if isinstance(default, tuple):
        kind: type = float if name == "scale_range" else str
        fits = isinstance(value, list) and all(_is_a(kind, item) for item in value)
        wanted = "a list of numbers" if kind is float else "a list of strings"
    else:
        fits = _is_a(type(default), value)
        wanted = {str: "a string", int: "a whole number", float: "a number"}[type(default)]
    if not fits:
        raise ValueError(f"{name} must be {wanted}, got {json.dumps(value)}.")


def _is_a(kind: type, value: Any) -> bool:
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and not isinstance(value, bool)
