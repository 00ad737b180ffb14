"""Formats the routing as a text table, with equal layers on one line and the totals per algorithm."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from celo2.routing.choices import ALGORITHMS
from celo2.routing.dimension_numbers import find_matrix_axes
from celo2.routing.routes import Route

HEADER: tuple[str, ...] = ("name", "shape", "algorithm", "matrix", "reason")
SAME = re.compile(r"\d+")


class Row(NamedTuple):
    """A parameter in the table."""

    path: str
    shape: tuple[int, ...]
    route: Route
    trainable: bool = True


def format_table(rows: Sequence[Row]) -> str:
    """Formats a table of parameters, with totals per algorithm over trained parameters.

    Parameters that differ only in the numbers in their names share a line. Matrices are shown as
    outputs × inputs with their axes; `3 of 8 × 8` means three of them. A `?` follows the algorithm of an
    undecided parameter.

    Example:
        >>> print(format_table([Row(f"h{i}/w", (8, 8), Route("celo2", "hidden matrix")) for i in range(3)]))
        name      shape   algorithm  matrix        reason
        h[0-2]/w  (8, 8)  celo2      8 × 8  0 → 1  hidden matrix
        celo2: 3 tensors, 192 parameters
        adamw: 0 tensors, 0 parameters
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        _, shape, route, trainable = row
        mark = "" if route.decided else " ?"
        frozen = "" if trainable else " (frozen)"
        cells = (
            str(shape),
            f"{route.algorithm}{mark}",
            _matrix_of(row),
            SAME.sub("#", route.reason) + frozen,
        )
        groups.setdefault((SAME.sub("#", row.path), *cells), []).append(row)
    table = [HEADER]
    for (_, shape, algorithm, matrix, _), alike in groups.items():
        reason = alike[0].route.reason + ("" if alike[0].trainable else " (frozen)")
        table.append((_merge([row.path for row in alike]), shape, algorithm, matrix, reason))
    widths = [max(len(cells[column]) for cells in table) for column in range(len(HEADER) - 1)]
    lines = ["  ".join([*map(str.ljust, cells[:-1], widths), cells[-1]]).rstrip() for cells in table]
    return "\n".join([*lines, *_totals(rows)])


def _totals(rows: Sequence[Row]) -> list[str]:
    lines = []
    for algorithm in ALGORITHMS:
        sizes = [math.prod(row.shape) for row in rows if row.route.algorithm == algorithm and row.trainable]
        tensors = "1 tensor" if len(sizes) == 1 else f"{len(sizes)} tensors"
        lines.append(f"{algorithm}: {tensors}, {sum(sizes):,} parameters")
    return lines


def _matrix_of(row: Row) -> str:
    """Formats the matrix as `8 × 27  1,2,3 → 0`: outputs × inputs, then the axes."""
    shape, route = row.shape, row.route
    if route.algorithm != "celo2" or sum(size > 1 for size in shape) < 2:
        return ""
    if route.numbers is None:
        reduction, output, splits = (len(shape) - 2,), (len(shape) - 1,), 1
    else:
        _, reduction, output, splits = find_matrix_axes(shape, route.numbers)
    inputs, outputs = (math.prod(shape[axis] for axis in axes) for axes in (reduction, output))
    count = math.prod(shape) // (inputs * outputs) * splits
    size = f"{outputs // splits} × {inputs}"
    axes = " → ".join(",".join(map(str, axes)) for axes in (reduction, output))
    return f"{count} of {size}  {axes}" if count > 1 else f"{size}  {axes}"


def _merge(paths: Sequence[str]) -> str:
    """Merges paths that differ only in numbers: `layers.[0-11].fc.weight`."""
    if len(paths) == 1:
        return paths[0]
    texts = SAME.split(paths[0])
    columns = list(zip(*(map(int, SAME.findall(path)) for path in paths), strict=True))
    merged = texts[0]
    for column, text in zip(columns, texts[1:], strict=True):
        merged += _range(sorted(set(column))) + text
    return merged


def _range(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"[{numbers[0]}-{numbers[-1]}]"
    return "[" + ",".join(map(str, numbers)) + "]"
