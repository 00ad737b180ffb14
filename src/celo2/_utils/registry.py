"""Registries of entries by name: built-in, registered, from other packages, or `package.module:attribute`."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from celo2.config import nearest_name

Entry = TypeVar("Entry")

REFERENCE = re.compile(
    r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
)  # package.module:attribute
NAME = re.compile(r"[\w.+-]+")  # of a registered entry


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name, in this order: built-in, registered, from entry points of installed packages.

    Entry points are imported on use, so that a broken package affects only its own entries.

    Args:
        kind: The kind of entries, in the singular, for messages.
        group: The group of entry points, such as `"celo2.tasks"`.
        built_in: The entries of this package.
        convert: `(name, thing) → entry`, for registered things; raises a ValueError for the wrong kind.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, Entry],
        convert: Callable[[str, Any], Entry],
    ) -> None:
        self.kind = kind
        self._group = group
        self._entries: dict[str, Entry] = dict(built_in)
        self._convert = convert
        self._points: dict[str, importlib.metadata.EntryPoint] | None = None

    def register(self, name: str, thing: Any) -> None:
        """Registers an entry under a new name.

        Args:
            name: Letters, digits, and `_ . + -`.
            thing: An entry, or something that can be converted to one.

        Raises:
            ValueError: The name is taken or has other characters, or the thing is of the wrong kind.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"{self.kind} names have letters, digits and _ . + - only, got {name!r}.")
        if name in self._entries or name in self._entry_points():
            raise ValueError(f"there is a {self.kind} {name!r} already; choose another name.")
        self._entries[name] = self._convert(name, thing)

    def find(self, name: str) -> Entry:
        """Returns the entry with a name, or the one that `package.module:attribute` refers to.

        Raises:
            ValueError: There is none (the message suggests the nearest), or it cannot be imported.
        """
        if name in self:
            return self[name]
        if REFERENCE.fullmatch(name):
            return self._convert(name, load_object(name))
        raise ValueError(
            f"unknown {self.kind} {name!r}{nearest_name(name, self)} There are {', '.join(self)}; your own "
            "is package.module:attribute."
        )

    def __getitem__(self, name: str) -> Entry:
        """Returns the entry with a name, importing it if it is from another package.

        Raises:
            KeyError: There is none.
            ValueError: The package's entry point cannot be imported, or is of the wrong kind.
        """
        if name not in self._entries:
            point = self._entry_points()[name]
            try:
                thing = point.load()
            except Exception as error:  # whatever importing somebody's module raises
                raise ValueError(
                    f"the {self.kind} {name!r} of an installed package ({point.value}) cannot be imported: "
                    f"{type(error).__name__}: {error}"
                ) from error
            self._entries[name] = self._convert(name, thing)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        yield from self._entries
        yield from (name for name in self._entry_points() if name not in self._entries)

    def __len__(self) -> int:
        """Returns the number of names."""
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        """Returns whether there is an entry with this name, without importing it."""
        return name in self._entries or name in self._entry_points()

    def describe(self, line: Callable[[Entry], str]) -> dict[str, str]:
        """Returns a line about each entry by name, or the reason why it cannot be imported.

        Args:
            line: Describes an entry.
        """
        found = {}
        for name in self:
            try:
                found[name] = line(self[name])
            except ValueError as error:
                found[name] = str(error)
        return found

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        if self._points is None:
            points = importlib.metadata.entry_points(group=self._group)
            self._points = {point.name: point for point in points if NAME.fullmatch(point.name)}
        return self._points


def load_object(reference: str) -> Any:
    """Imports `package.module:attribute`, from installed modules or else the current folder.

    Raises:
        ValueError: The module or the attribute does not exist, or importing the module fails.

    Example:
        >>> load_object("math:sqrt")(4.0)
        2.0
    """
    module_name, _, path = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever importing somebody's module raises
        raise ValueError(
            f"{reference!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
            "expected package.module:attribute, installed or in the current folder."
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            public = [other for other in vars(found) if not other.startswith("_")]
            raise ValueError(f"{reference!r}: {module_name!r} has no {name!r}{nearest_name(name, public)}")
        found = getattr(found, name)
    return found


def first_line(thing: Any) -> str:
    """Returns the first line of an object's docstring, without its full stop; "" without one."""
    lines = (getattr(thing, "__doc__", None) or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else ""
