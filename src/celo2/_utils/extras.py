"""Checks for optional dependencies, with one error message for all that are missing."""

from __future__ import annotations

import importlib.util


def require(extra: str, *modules: str) -> None:
    """Raises an ImportError that names the extra if one of the modules is not installed.

    Args:
        extra: The extra of this package that installs the modules, such as `"jax"`.
        *modules: Their import names.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"this part of celo2 needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            f"not installed; run: pip install 'celo2[{extra}]'"
        )
