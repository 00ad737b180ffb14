"""How the command line writes what tyro has no words for: names, and learning rates of optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from celo2.evaluate.compare import ALL

__all__ = ["make_registry"]


def make_registry() -> ConstructorRegistry:
    """Names as `NAME,NAME` or `NAME NAME`, learning rates as `[NAME=]RATE,RATE`."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _names(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != tuple[str, ...]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME,NAME",
            instance_from_str=_split,
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda names: [",".join(names)] if names else [],
        )

    @registry.primitive_rule
    def _rates(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != Mapping[str, tuple[float, ...]]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[NAME=]RATE,RATE",
            instance_from_str=lambda words: dict(map(_parse_rates, words)),
            is_instance=lambda value: isinstance(value, Mapping),
            str_from_instance=lambda rates: [
                f"{name}={','.join(map(str, values))}" for name, values in rates.items()
            ],
        )

    return registry


def _split(words: list[str]) -> tuple[str, ...]:
    return tuple(name.strip() for word in words for name in word.split(",") if name.strip())


def _parse_rates(text: str) -> tuple[str, tuple[float, ...]]:
    """`"adamw=1e-3,3e-3"` as a pair; without a name it is for all optimizers."""
    name, _, numbers = text.rpartition("=")
    try:
        return name or ALL, tuple(float(number) for number in numbers.split(","))
    except ValueError as error:
        raise ValueError(f"expected learning rates such as adamw=1e-3,3e-3, got {text!r}.") from error
