"""Routes the parameters of a module to the rule (hidden matrices) or to AdamW.

As for JAX, `celo2.routing` defines the evidence and its precedence; `params.py` reads the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from celo2.routing import (
    Param,
    Route,
    Row,
    Undecided,
    choose,
    format_table,
    make_routes,
    tell,
)
from celo2.torch.dimensions import DimensionNumbers
from celo2.torch.routing.params import clean_name, describe_named, describe_parameters

Overrides = Mapping[str, str] | Callable[[str, Tensor], str | None] | None
Numbers = Mapping[str, DimensionNumbers | None] | None


def find_routes(
    module: nn.Module,
    *,
    overrides: Overrides = None,
    dimension_numbers: Numbers = None,
    split_heads: bool = False,
    base: bool = False,
    undecided: Undecided = "warn",
) -> dict[str, Route]:
    r"""Routes every parameter of a module by the layers that contain it.

    The following get `"adamw"`, in this order: rank ≤ 1 and effective vectors; norms of any rank,
    embeddings and depthwise convolutions, by the layer's class or a base class; tables, tokens, routers
    and heads, by the names of modules, classes and parameters; routers with one output per expert beside
    them; an embedding in a second place (a tied head); matrices with the vocabulary's size; and
    projections whose output no layer reads. All other parameters are hidden. Parameters of a
    parametrization or an adapter are routed like the layer they belong to. Wrappers and the order of
    registration do not matter ("What updates what" in the documentation has examples).

    Args:
        module: The module to train. Only its layers' types and sizes and its parameters' names and
            shapes are read.
        overrides: The algorithm of some parameters: a mapping from regular expressions to `"celo2"` or
            `"adamw"`, tried with `re.search` on the parameter's name (without parts added by wrappers), where
            the first match wins; or a callable `(name, parameter) → "celo2" | "adamw" | None`.
        dimension_numbers: The matrix inside some parameters, by regular expressions as in `overrides`:
            `{r"qkv\.weight": DimensionNumbers(1, 0, output_splits=3)}`. None: the parameter as stored.
        split_heads: Whether each head of `nn.MultiheadAttention` has its own query, key and value
            matrices, instead of one of each for all heads.
        base: Whether every parameter gets the rule (Celo2-base), along the same axes.
        undecided: Handling of parameters with too little evidence, which get the rule. `"warn"`: one
            `RoutingWarning` lists them; `"raise"`: a ValueError does; `"allow"`: silence.

    Returns:
        The route of each name in `module.named_parameters()`.

    Raises:
        ValueError: An override or dimension numbers match no parameter, or an algorithm is unknown.

    Example:
        >>> layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [(name, route.algorithm) for name, route in find_routes(layers).items()]
        [('0.weight', 'celo2'), ('0.bias', 'adamw'), ('2.weight', 'adamw'), ('2.bias', 'adamw')]
    """
    params = describe_parameters(module, split_heads=split_heads)
    clean = [(clean_name(module, param.path), module.get_parameter(param.path)) for param in params]
    paths = {name: [] for name, _ in clean}
    for (name, _), param in zip(clean, params, strict=True):
        paths[name].append(param.path)

    def chosen(choices: Any, argument: str) -> dict[str, Any]:
        picked = choose(choices, clean, argument)
        return {path: choice for name, choice in picked.items() for path in paths[name]}

    algorithms = chosen(overrides, "overrides")
    numbers = chosen(dimension_numbers, "dimension_numbers")
    routes = make_routes(params, algorithms=algorithms, numbers=numbers, base=base)
    kept = _one_for_each(params, routes, {*algorithms, *numbers})
    tell([param for param, _ in kept.values()], [route for _, route in kept.values()], undecided)
    return {name: fit_route(route, module.get_parameter(name)) for name, (_, route) in kept.items()}


def fit_route(route: Route, param: Tensor) -> Route:
    """Returns the route, or AdamW if the rule cannot train the parameter and no override demands it."""
    if param.is_complex() and route.algorithm == "celo2" and route.reason != "override":
        return route._replace(algorithm="adamw", reason="complex numbers")
    return route


def find_routes_by_name(named: Iterable[tuple[str, Tensor]], *, base: bool = False) -> list[Route]:
    """Routes parameters given without their module by names and shapes, in order.

    Example:
        >>> import torch
        >>> named = [("lm_head.weight", torch.ones(8, 4)), ("h.0.fc.weight", torch.ones(4, 4))]
        >>> [route.algorithm for route in find_routes_by_name(named)]
        ['adamw', 'celo2']
    """
    return make_routes(describe_named(named), base=base, is_part=True)


def routing_table(module: nn.Module, **options: Any) -> str:
    """Formats the routes of a module as a table, with the totals of each algorithm.

    A `?` marks undecided parameters; frozen parameters are shown, but not counted.

    Example:
        >>> print(routing_table(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 3))))
        name      shape   algorithm  matrix        reason
        0.weight  (8, 8)  celo2      8 × 8  1 → 0  hidden matrix
        1.weight  (3, 8)  adamw                    output head, no layer reads its 3 outputs
        1.bias    (3,)    adamw                    rank 1
        celo2: 1 tensor, 64 parameters
        adamw: 2 tensors, 27 parameters
    """
    routes = find_routes(module, **{"undecided": "allow", **options})
    return format_routes([(name, module.get_parameter(name), route) for name, route in routes.items()])


def format_routes(entries: Sequence[tuple[str, Tensor, Route]]) -> str:
    """Formats a table of `(name, parameter, route)`, equal layers on one line, with totals per algorithm."""
    return format_table(
        [Row(name, tuple(param.shape), route, param.requires_grad) for name, param, route in entries]
    )


def _one_for_each(
    params: Sequence[Param], routes: Sequence[Route], chosen: set[str]
) -> dict[str, tuple[Param, Route]]:
    """Returns one route per parameter, by its first name: the user's, or else AdamW if any place gets it."""
    first: dict[int, str] = {}
    kept: dict[str, tuple[Param, Route]] = {}
    for param, route in zip(params, routes, strict=True):
        name = first.setdefault(param.identity, param.path)
        if name not in kept:
            kept[name] = param, route
            continue
        held, old = kept[name]
        told = param.path in chosen and name not in chosen
        if told or ((old.algorithm, route.algorithm) == ("celo2", "adamw") and name not in chosen):
            kept[name] = held, route._replace(numbers=old.numbers if not told else route.numbers)
    return kept
