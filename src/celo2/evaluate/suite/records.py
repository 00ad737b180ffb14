"""Builds dataclasses from JSON records, checking every field: another version may have written them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Built = TypeVar("Built")


def from_record(cls: type[Built], record: Any, what: str) -> Built:
    """Builds an instance of a dataclass of plain values.

    Args:
        cls: The dataclass; its fields are numbers or strings, possibly optional.
        record: The parsed JSON.
        what: The name of the record for messages.

    Raises:
        ValueError: The record is not an object, or its fields differ in name, type or range.
    """
    hints = typing.get_type_hints(cls)
    check_fields(record, {field.name for field in dataclasses.fields(cls)}, what)  # type: ignore[arg-type]
    for name, value in record.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{what} has {name}={value!r:.40}, expected {_describe(hints[name])}.")
    return cls(**record)


def check_fields(record: Any, expected: set[str], what: str) -> None:
    """Raises a ValueError unless the record is an object with exactly these fields."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{what} is {record!r:.40}, expected an object.")
    missing, unknown = expected - record.keys(), record.keys() - expected
    if missing or unknown:
        faults = [f"lacks {', '.join(sorted(missing))}"] if missing else []
        faults += [f"has unknown fields {', '.join(sorted(unknown))}"] if unknown else []
        raise ValueError(f"{what} {' and '.join(faults)}; another version of celo2 wrote it.")


def _fits(value: Any, hint: Any) -> bool:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds:
        kinds = (*kinds, int)
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def _describe(hint: Any) -> str:
    words: dict[str, str] = {
        "int": "a whole number",
        "float": "a number",
        "str": "a text",
        "NoneType": "null",
    }
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(words.get(kind.__name__, str(kind)) for kind in kinds)
