"""Routes as the tables of expected routes write them, and how the two are compared."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from celo2.routing import Route
from celo2.routing.dimension_numbers import find_matrix_axes

KERNELS = r"[./](weight|kernel|w|embedding|embeddings)$"


def describe(shape: tuple[int, ...], route: Route) -> str:
    """`adamw`, or `3 of 64 × 64 [1 → 0]`: how many matrices, outputs × inputs, input → output axes."""
    if route.algorithm == "adamw":
        return "adamw"
    reduction, output, splits = (len(shape) - 2,), (len(shape) - 1,), 1
    if route.numbers is not None:
        _, reduction, output, splits = find_matrix_axes(shape, route.numbers)
    inputs, outputs = (math.prod(shape[axis] for axis in axes) for axes in (reduction, output))
    count = math.prod(shape) // (inputs * outputs) * splits
    axes = " → ".join(",".join(map(str, axes)) for axes in (reduction, output))
    return f"{count} of " * (count > 1) + f"{outputs // splits} × {inputs} [{axes}]"


def check(found: Iterable[tuple[str, tuple[int, ...], Route]], expected: Mapping[str, str]) -> None:
    """Each matrix is described as the first pattern that matches its name says; each pattern matches some.

    Vectors, and what is one in effect, must go to AdamW. A name loses its last `.weight` or `/kernel`; its
    slashes become dots. `*` in place of the size leaves the size open.
    """
    wrong, used = [], set()
    for name, shape, route in found:
        if sum(size > 1 for size in shape) < 2:
            if route.algorithm != "adamw":
                wrong.append(f"{name}: a vector, but {route}")
            continue
        plain = plain_name(name)
        pattern = next((pattern for pattern in expected if fnmatchcase(plain, pattern)), None)
        used.add(pattern)
        actual = describe(shape, route)
        if pattern is None or not _is_as(actual, expected[pattern]) or not route.decided:
            wanted = "nothing" if pattern is None else expected[pattern]
            wrong.append(f"{plain} {shape}: {actual}, {route.reason!r}; expected {wanted}")
    assert not wrong, "\n".join(wrong)
    assert used == set(expected), f"patterns that match nothing: {set(expected) - used}"


def plain_name(name: str) -> str:
    """A parameter's name in either framework, without what each calls a layer's kernel."""
    return re.sub(KERNELS, "", name).replace("/", ".")


def _is_as(actual: str, expected: str) -> bool:
    """Equality; `*` leaves the size open, and expectations without axes leave the axes open."""
    if expected.startswith("* ["):
        return "×" in actual and actual.endswith(expected[1:])
    return actual == expected or ("[" not in expected and actual.partition(" [")[0] == expected)
