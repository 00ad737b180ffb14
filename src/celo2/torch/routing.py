"""Which parameter of a module is a hidden matrix, trained by the rule, and along which axes.

Source: the published recipe (arXiv 2602.19142): the rule with Newton–Schulz is for hidden matrices;
embeddings, the output head and everything of rank ≤ 1 get AdamW. Positional tables and routers are
tables and heads of their own and go the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from celo2.config import nearest_name
from celo2.torch._layers import Place, find_places, find_wrapper
from celo2.torch._roles import find_heads, find_routers
from celo2.torch.dimensions import DimensionNumbers, make_layout

__all__ = [
    "ALGORITHMS",
    "Overrides",
    "Route",
    "check_algorithm",
    "find_routes",
    "format_routes",
    "routing_table",
]

Algorithm = Literal["celo2", "adamw"]
ALGORITHMS: tuple[Algorithm, ...] = ("celo2", "adamw")
Overrides = Mapping[str, str] | Callable[[str, Tensor], str | None] | None
Numbers = Mapping[str, DimensionNumbers | None] | None


class Route(NamedTuple):
    """What updates one parameter.

    Attributes:
        algorithm: `"celo2"` (the rule) or `"adamw"`.
        reason: One short phrase: what this rests on.
        numbers: Which axes are its matrix; None takes it as stored.
    """

    algorithm: Algorithm
    reason: str
    numbers: DimensionNumbers | None = None


def find_routes(
    module: nn.Module,
    *,
    overrides: Overrides = None,
    dimension_numbers: Numbers = None,
    split_heads: bool = False,
    base: bool = False,
) -> dict[str, Route]:
    r"""Routes every parameter of a module by the layers that hold it.

    In this order, `"adamw"` goes to rank ≤ 1 and what is a vector in effect; to norms of any rank; to
    embeddings, also in a second place (a tied head); to positional tables and learned tokens; to
    routers of a mixture of experts; and to output heads. A head is a projection outside of repeated
    layers and attention which has the size of an embedding's vocabulary, or an output that no other
    layer reads, or a name such as `lm_head`, or which is the root's last. The rest is hidden.

    Args:
        module: What is trained. Only its layers' types and sizes, its parameters' names and shapes
            and the order of registration are looked at.
        overrides: What to do instead: a mapping from regular expressions to `"celo2"` or `"adamw"`,
            tried with `re.search` on the parameter's name, the first match wins; or a callable
            `(name, parameter) → "celo2" | "adamw" | None`.
        dimension_numbers: The matrix inside some parameters, by regular expressions as in `overrides`:
            `{r"qkv\.weight": DimensionNumbers(1, 0, output_splits=3)}`.
        split_heads: Whether each head of `nn.MultiheadAttention` gets query, key and value matrices of
            its own, rather than each of the three one for all heads.
        base: Whether every parameter gets the rule (Celo2-base), along the same axes.

    Returns:
        Name → route, for the names of `module.named_parameters()`.

    Raises:
        ValueError: An override or dimension numbers that match no parameter, or an unknown algorithm.

    Example:
        >>> layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [(name, route.algorithm) for name, route in find_routes(layers).items()]
        [('0.weight', 'celo2'), ('0.bias', 'adamw'), ('2.weight', 'adamw'), ('2.bias', 'adamw')]
    """
    wrapper = find_wrapper(module)
    if wrapper:
        inner = find_routes(
            module.get_submodule(wrapper),
            overrides=overrides,
            dimension_numbers=dimension_numbers,
            split_heads=split_heads,
            base=base,
        )
        return {f"{wrapper}.{name}": route for name, route in inner.items()}
    places = find_places(module, split_heads=split_heads)
    found = {place.name: place.reason for place in places if place.reason}
    open_places = [place for place in places if not place.reason]
    found |= find_routers(module, open_places)
    found |= find_heads(module, places, [place for place in open_places if place.name not in found])
    routes = {place.name: _make_route(place, found, base) for place in places}
    named = [(place.name, place.param) for place in places]
    for name, choice in _choose(overrides, named, "overrides").items():
        routes[name] = routes[name]._replace(algorithm=check_algorithm(choice, name), reason="override")
    for name, numbers in _choose(dimension_numbers, named, "dimension_numbers").items():
        make_layout(tuple(module.get_parameter(name).shape), numbers)
        routes[name] = routes[name]._replace(numbers=numbers)
    return routes


def check_algorithm(value: Any, source: str) -> Algorithm:
    """Returns a valid algorithm; a ValueError names the valid ones for any other."""
    if value not in ALGORITHMS:
        hint = nearest_name(value, ALGORITHMS) if isinstance(value, str) else ""
        raise ValueError(f"unknown algorithm {value!r} for {source}{hint}; valid are 'celo2' and 'adamw'.")
    return value


def routing_table(module: nn.Module, **options: Any) -> str:
    """The table of `find_routes` for a module, and the totals of each algorithm.

    Example:
        >>> print(routing_table(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 3))))
        name      shape   algorithm  reason
        0.weight  (8, 8)  celo2      hidden matrix
        1.weight  (3, 8)  adamw      output head, no layer reads its 3 outputs
        1.bias    (3,)    adamw      rank 1
        celo2: 1 tensor, 64 parameters
        adamw: 2 tensors, 27 parameters
    """
    routes = find_routes(module, **options)
    return format_routes([(name, module.get_parameter(name), route) for name, route in routes.items()])


def format_routes(entries: Sequence[tuple[str, Tensor, Route]]) -> str:
    """A table of `(name, parameter, route)`, one line each, and the totals of each algorithm."""
    rows = [("name", "shape", "algorithm", "reason")]
    rows += [(name, str(tuple(p.shape)), route.algorithm, route.reason) for name, p, route in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]
    for algorithm in ALGORITHMS:
        sizes = [param.numel() for _, param, route in entries if route.algorithm == algorithm]
        tensors = "1 tensor" if len(sizes) == 1 else f"{len(sizes)} tensors"
        lines.append(f"{algorithm}: {tensors}, {sum(sizes):,} parameters")
    return "\n".join(lines)


def _make_route(place: Place, found: Mapping[str, str], base: bool) -> Route:
    if base:
        return Route("celo2", "every parameter", place.numbers)
    if reason := found.get(place.name):
        return Route("adamw", reason, place.numbers)
    return Route("celo2", place.kind, place.numbers)


def _choose(choices: Any, named: Sequence[tuple[str, Tensor]], argument: str) -> dict[str, Any]:
    """The user's choice for the parameters that it names."""
    if choices is None:
        return {}
    if callable(choices):
        chosen = {name: choices(name, param) for name, param in named}
        return {name: choice for name, choice in chosen.items() if choice is not None}
    result: dict[str, Any] = {}
    for pattern, choice in choices.items():
        names = [name for name, _ in named if re.search(pattern, name)]
        if not names:
            hint = nearest_name(pattern, [name for name, _ in named])
            raise ValueError(f"{argument}: {pattern!r} matches no parameter{hint}.")
        result = {**dict.fromkeys(names, choice), **result}
    return result
