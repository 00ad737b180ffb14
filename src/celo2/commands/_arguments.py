"""How the command line writes what tyro has no words for."""

from __future__ import annotations

from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

__all__ = ["make_registry"]


def make_registry() -> ConstructorRegistry:
    """A registry in which a tuple of names is one word with commas."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _names(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != tuple[str, ...]:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="NAME,NAME",
            instance_from_str=lambda words: tuple(name.strip() for name in words[0].split(",")),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda names: [",".join(names)],
        )

    return registry
