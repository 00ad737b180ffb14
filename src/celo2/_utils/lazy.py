"""Imports a package's public names on first use, so that importing the package stays cheap."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def import_name(package: str, home: Mapping[str, str], name: str) -> Any:
    """Imports a public name from the module that defines it; for a package's `__getattr__`.

    Args:
        package: The package's `__name__`.
        home: The module of each public name.
        name: The requested name.

    Raises:
        AttributeError: The package has no such name.

    Example:
        >>> import_name("shapes", {"sqrt": "math"}, "sqrt")(4.0)
        2.0
    """
    if name not in home:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home[name]), name)
