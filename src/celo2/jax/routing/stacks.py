"""Finds the layer axes of leaves stacked by `nn.scan` or `vmap`ped blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from celo2.routing.names import (
    LAYER_LISTS,
    is_attention,
    is_norm,
    is_query,
    is_vector,
    make_name,
)

AXES = (0, 1)  # a scan's axis: Flax's default, and MaxText's
Shape = tuple[int, ...]


def find_stack_axes(shapes: Mapping[str, Shape]) -> dict[str, tuple[int, ...]]:
    """Returns the layer axis of each stacked leaf, as a tuple.

    A module is a stack if all of its leaves have rank ≥ 2, some of them exactly 2, and the same size along
    one axis; and if it is named like a list of layers or contains what would otherwise be a vector, such as
    a norm's scale.

    Args:
        shapes: The shapes of the leaves, by `/`-joined path.

    Example:
        >>> find_stack_axes({"layers/fc/kernel": (3, 8, 16), "layers/ln/scale": (3, 8), "head": (8, 4)})
        {'layers/fc/kernel': (0,), 'layers/ln/scale': (0,)}
    """
    under: dict[str, list[str]] = defaultdict(list)
    for path in shapes:
        names = path.split("/")
        for depth in range(1, len(names)):
            under["/".join(names[:depth])].append(path)
    found: dict[str, tuple[int, ...]] = {}
    for module in sorted(under, key=len):
        paths = under[module]
        if paths[0] in found or not _may_be_stack(module, paths, shapes):
            continue
        axis = next((axis for axis in AXES if len({shapes[path][axis] for path in paths}) == 1), None)
        if axis is not None and shapes[paths[0]][axis] > 1:
            found |= dict.fromkeys(paths, (axis,))
    return found


def _may_be_stack(module: str, paths: Sequence[str], shapes: Mapping[str, Shape]) -> bool:
    ranks = [len(shapes[path]) for path in paths]
    if min(ranks) != 2 or max(ranks) < 3:
        return False
    names = [make_name(name) for name in module.split("/")]
    if any(is_attention(name) or is_query(name) for name in names):
        return False  # a kernel (d, heads, head_dim) and its bias (heads, head_dim)
    return bool(LAYER_LISTS & names[-1].words) or any(_is_stacked_vector(path, shapes) for path in paths)


def _is_stacked_vector(path: str, shapes: Mapping[str, Shape]) -> bool:
    names = [make_name(name) for name in path.split("/")]
    return len(shapes[path]) == 2 and (is_vector(names[-1]) or any(map(is_norm, names[-2:])))
