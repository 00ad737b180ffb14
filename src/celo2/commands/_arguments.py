"""Parses command lines: lists, optional values, learning rates by optimizer, and `--config`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
)

from celo2.evaluate.suite.spec import ALL

NONE = "none"  # shown in the help for an empty default
METAVARS = {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH"}

Spec = PrimitiveConstructorSpec[Any]
Part = TypeVar("Part")


def peek(argv: Sequence[str]) -> argparse.Namespace:
    """Finds the options that determine a parser's defaults: `config`, `out`, `resume`."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config", type=Path)
    early.add_argument("--out", type=Path)
    early.add_argument("--resume", action="store_true")
    try:
        return early.parse_known_args(list(argv))[0]
    except argparse.ArgumentError:  # --config without a file: tyro reports it
        return argparse.Namespace(config=None, out=None, resume=False)


def take_part(command: Any, part: type[Part]) -> Part:
    """Builds the dataclass `part` from the fields that a command, or a part of one, inherits from it."""
    names = (field.name for field in dataclasses.fields(part))  # type: ignore[arg-type]
    return part(**{name: getattr(command, name) for name in names})


def peek_devices(argv: Sequence[str]) -> int:
    """Returns the value of `--devices` before the command line is parsed; 0 if it is absent or not a number.

    Parsing may import the user's modules, which may start JAX, and the devices are fixed from then on.
    """
    words = [part for word in argv for part in word.split("=", 1)]
    found = [after for word, after in itertools.pairwise(words) if word == "--devices"]
    return int(found[-1]) if found and found[-1].isdecimal() else 0


def asks_for_help(argv: Sequence[str]) -> bool:
    """Returns whether help is requested, which lists what other packages have registered."""
    return not {"-h", "--help"}.isdisjoint(argv)


def make_registry(*, commas: bool = True) -> ConstructorRegistry:
    """Makes parsers for lists (`A B`), learning rates (`[NAME=]RATE,RATE`) and optional values (`none`).

    Args:
        commas: Whether lists of text may also be written `A,B`; False if the items contain commas.
    """
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _rule(info: PrimitiveTypeInfo) -> Spec | None:
        kind: Any = info.type
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if kind == Mapping[str, tuple[float, ...]]:
            return _rates()
        if origin in (types.UnionType, typing.Union) and types.NoneType in parts and len(parts) == 2:
            [part] = [part for part in parts if part is not types.NoneType]
            return _optional(part) if part in METAVARS else None
        if origin is tuple and len(parts) == 2 and parts[1] is Ellipsis:
            return _list(parts[0], tuple, commas=commas)
        return _list(parts[0], list, commas=False) if origin is list else None

    return registry


def _rates() -> Spec:
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=]RATE,RATE",
        instance_from_str=lambda words: dict(map(_parse_rates, words)),
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda rates: (
            [f"{name}={','.join(map(str, values))}" for name, values in rates.items()] or [NONE]
        ),
    )


def _optional(kind: Callable[[str], Any]) -> Spec:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=METAVARS[kind],  # type: ignore[index]
        instance_from_str=lambda words: kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),  # type: ignore[arg-type]
        str_from_instance=lambda value: [NONE if value is None else str(value)],
    )


def _list(item: Any, make: Callable[[Sequence[Any]], Any], *, commas: bool) -> Spec | None:
    choices = typing.get_args(item) if typing.get_origin(item) is typing.Literal else None
    if choices is None and item not in METAVARS:
        return None
    kind, split = (str if choices else item), commas and item is str
    one = f"{{{','.join(choices)}}}" if choices else METAVARS[kind]

    def parse(words: list[str]) -> Any:
        items = [part.strip() for word in words for part in (word.split(",") if split else [word])]
        return make([kind(text) for text in items if text or not split])

    def write(values: Sequence[Any]) -> list[str]:
        words = [str(value) for value in values] or [NONE]
        return [",".join(words)] if split else words

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME,NAME" if split else f"[{one} ...]",
        choices=choices,
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, tuple | list),
        str_from_instance=write,
    )


def _parse_rates(text: str) -> tuple[str, tuple[float, ...]]:
    """Parses `"adamw=1e-3,3e-3"` into a pair; without a name, the rates apply to all optimizers."""
    name, _, numbers = text.rpartition("=")
    try:
        return name or ALL, tuple(float(number) for number in numbers.split(","))
    except ValueError as error:
        raise ValueError(f"expected learning rates such as adamw=1e-3,3e-3, got {text!r}.") from error
