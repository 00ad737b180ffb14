"""Parses settings: JSON objects of a dataclass's fields, family weights, and options of the rule."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar, get_args, get_origin, get_type_hints

from celo2._utils.files import parse_object
from celo2._utils.registry import REFERENCE, Registry
from celo2.config import RuleConfig, nearest_name


class _FromJson(Protocol):
    """A config that is built from a JSON text."""

    @classmethod
    def from_json(cls, text: str) -> Self: ...


Config = TypeVar("Config", bound=_FromJson)

_ONE = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
_MANY = {str: "a list of strings", float: "a list of numbers"}


def parse_fields(cls: type, text: str, what: str) -> dict[str, Any]:
    """Parses a JSON object whose names are fields of a dataclass; any field may be missing.

    Args:
        cls: The dataclass; the annotations of its fields determine the valid values.
        text: The JSON text.
        what: What the text should be, for error messages.

    Raises:
        ValueError: The text is not a JSON object, has an unknown name, or a value of the wrong type.
    """
    values, kinds = parse_object(text), get_type_hints(cls)
    for name, value in values.items():
        if name not in kinds:
            near = nearest_name(name, kinds)
            raise ValueError(f"unknown name {name!r} in {what}{near} There are {', '.join(kinds)}.")
        check_kind(name, value, kinds[name])
    return values


def load_config(cls: type[Config], path: str | os.PathLike[str]) -> Config:
    """Reads the JSON file of a config that has `from_json`.

    Raises:
        OSError: The file cannot be read.
        ValueError: As in `from_json`; the message begins with the path.
    """
    try:
        return cls.from_json(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def check_kind(name: str, value: Any, kind: Any) -> None:
    """Checks that a JSON value matches a field's annotation: text, a number, a choice, or a list of these.

    Raises:
        ValueError: It does not match.
    """
    if get_origin(kind) is tuple:
        item = _plain(get_args(kind)[0])
        fits = isinstance(value, list) and all(_is_a(item, one) for one in value)
        wanted = _MANY[item]
    else:
        fits, wanted = _is_a(_plain(kind), value), _ONE[_plain(kind)]
    if not fits:
        raise ValueError(f"{name} must be {wanted}, got {json.dumps(value):.60}.")


def _plain(kind: Any) -> type:
    return str if get_origin(kind) is Literal else kind


def _is_a(kind: type, value: Any) -> bool:
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)  # True is an int


def parse_shares(entries: Sequence[str], known: Sequence[str] | Registry[Any]) -> dict[str, float]:
    """Parses entries `NAME` or `NAME:WEIGHT`; a missing weight is 1.

    Args:
        entries: The entries, at least one.
        known: The allowed names; for a registry also `package.module:attribute`.

    Raises:
        ValueError: There is no entry, or an entry is malformed, unknown or repeated.

    Example:
        >>> parse_shares(["mlp:3", "conv"], ["mlp", "conv", "rnn"])
        {'mlp': 3.0, 'conv': 1.0}
    """
    if not entries:
        raise ValueError(f"at least one of {', '.join(known)} is needed.")
    weights: dict[str, float] = {}
    for entry in entries:
        name, colon, word = _split_weight(entry, known)
        if isinstance(known, Registry):
            known.find(name)
        elif name not in known:
            raise ValueError(
                f"unknown name {name!r}{nearest_name(name, known)} There are {', '.join(known)}."
            )
        if name in weights:
            raise ValueError(f"{name!r} occurs twice; add its weights: {name}:WEIGHT.")
        try:
            weight = float(word) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(f"expected NAME or NAME:WEIGHT with a positive weight, got {entry!r}.")
        weights[name] = weight
    return weights


def _split_weight(entry: str, known: Container[str]) -> tuple[str, str, str]:
    """Splits `NAME:WEIGHT` at its last colon; a name may be `package.module:attribute`."""
    name, colon, word = entry.rpartition(":")
    if not colon or (REFERENCE.fullmatch(entry) and name not in known):
        return entry, "", ""
    return name, colon, word


def split_by_weight(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Allocates pairs by weight: one per name, then by the largest-remainder method.

    A name's quota is `total · weight / Σ weights`. Names with a quota below one get one; the
    others share the remainder by weight: the integer part of the quota, plus one for the largest
    fractions (ties go to the first).

    Args:
        total: The total number of pairs, at least one per name.
        weights: Positive weights by name.

    Raises:
        ValueError: There are fewer pairs than names.

    Example:
        >>> split_by_weight(32, {"mlp": 2.0, "conv": 1.0, "rnn": 0.01})
        {'mlp': 21, 'conv': 10, 'rnn': 1}
    """
    if total < len(weights):
        raise ValueError(f"{total} pairs are too few for {len(weights)} families, which need one each.")
    small = _below_one(total, weights)
    rest = {name: weight for name, weight in weights.items() if name not in small}
    left, scale = total - len(small), sum(rest.values())
    quotas = {name: left * weight / scale for name, weight in rest.items()}
    counts = dict.fromkeys(weights, 1) | {name: math.floor(quota) for name, quota in quotas.items()}
    by_fraction = sorted(quotas, key=lambda name: math.floor(quotas[name]) - quotas[name])
    for name in by_fraction[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _below_one(total: int, weights: Mapping[str, float]) -> set[str]:
    """Returns the names with a quota below one, found repeatedly as the others' quotas shrink."""
    small: set[str] = set()
    while True:
        scale = sum(weight for name, weight in weights.items() if name not in small)
        left = total - len(small)
        more = {name for name, weight in weights.items() if name not in small and left * weight < scale}
        if not more:
            return small
        small |= more


def parse_rule_options(words: tuple[str, ...]) -> dict[str, Any]:
    """Parses options of the rule, `NAME=VALUE` with JSON values.

    Raises:
        ValueError: A word is malformed, repeated, not an option of the rule, or set by the variant.
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
            known = RuleConfig.option_names()
            raise ValueError(
                f"unknown option {name!r}{nearest_name(name, known)} There are {', '.join(known)}."
            )
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value  # plain text, quoted in JSON
    return options
