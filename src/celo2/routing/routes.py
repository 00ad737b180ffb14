"""Assigns an algorithm and matrix axes to each parameter: the user's choice, or else by evidence.

Source: the published recipe (arXiv 2602.19142): the rule with Newton–Schulz is for hidden matrices;
embeddings, the output head and everything of rank ≤ 1 get AdamW. Positional tables and routers are
tables and heads too, so they also get AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from celo2._utils.user_warnings import warn
from celo2.routing.axes import looks_fused
from celo2.routing.choices import check_algorithm
from celo2.routing.dimension_numbers import DimensionNumbers, find_matrix_axes
from celo2.routing.network import Finding, Network
from celo2.routing.params import Param
from celo2.routing.roles import find_roles

Algorithm = Literal["celo2", "adamw"]
Undecided = Literal["warn", "raise", "allow"]


FLAT_SIZE = 4096  # elements; a shorter bare vector is more likely a parameter than a flattened network


class RoutingWarning(UserWarning):
    """Warning that some parameters are routed on too little evidence; the message lists them."""


class Route(NamedTuple):
    """The algorithm and the axes of one parameter.

    Attributes:
        algorithm: `"celo2"` (the rule) or `"adamw"`.
        reason: The evidence for it, as a short phrase.
        numbers: The matrix axes; None: as stored.
        decided: False if the evidence was insufficient and `"celo2"` is only the default.
    """

    algorithm: Algorithm
    reason: str
    numbers: DimensionNumbers | None = None
    decided: bool = True


def make_routes(
    params: Sequence[Param],
    *,
    algorithms: Mapping[str, str] | None = None,
    numbers: Mapping[str, Any] | None = None,
    base: bool = False,
    is_part: bool = False,
) -> list[Route]:
    """Routes all parameters of a network.

    Args:
        params: The descriptions made by the framework's reader.
        algorithms: The user's algorithms for some paths.
        numbers: The user's dimension numbers for some paths; None: the parameter as stored.
        base: Whether every parameter gets the rule (Celo2-base), along the same axes.
        is_part: Whether the parameters are known to be only a part of a network.

    Raises:
        TypeError: Dimension numbers have the wrong type.
        ValueError: An algorithm is unknown, or dimension numbers do not fit a shape.
    """
    network = Network(params, is_part=is_part)
    found = find_roles(network)
    algorithms, numbers = algorithms or {}, numbers or {}
    routes = []
    for param in params:
        route = _make_route(network, param, found[param], base=base)
        if param.path in numbers:
            route = route._replace(numbers=check_numbers(numbers[param.path], param.shape))
            if route.decided and route.algorithm == "celo2" and not base:
                route = route._replace(reason="hidden, dimension_numbers given")
        if choice := algorithms.get(param.path):
            algorithm: Any = check_algorithm(choice, param.path)
            route = route._replace(algorithm=algorithm, reason="override", decided=True)
        routes.append(route)
    return routes


def check_numbers(numbers: Any, shape: Sequence[int]) -> DimensionNumbers | None:
    """Converts dimension numbers (also Optax's) to `DimensionNumbers` if they fit a shape.

    Raises:
        TypeError: `numbers` has the wrong type.
        ValueError: They do not fit.
    """
    if numbers is None:
        return None
    if not (hasattr(numbers, "reduction_axis") and hasattr(numbers, "output_axis")):
        raise TypeError(f"dimension numbers must be DimensionNumbers or None, got {numbers!r}.")
    find_matrix_axes(shape, numbers)
    return DimensionNumbers(numbers.reduction_axis, numbers.output_axis, getattr(numbers, "output_splits", 1))


def tell(params: Sequence[Param], routes: Sequence[Route], undecided: Undecided = "warn") -> None:
    """Reports undecided trainable parameters, or a flattened network, as one warning or as an error.

    Args:
        params: All parameters.
        routes: Their routes.
        undecided: `"warn"`, `"raise"` or `"allow"`.

    Raises:
        ValueError: Some are undecided and `undecided` is `"raise"`, or `undecided` is none of the three.
    """
    if undecided not in get_args(Undecided):
        raise ValueError(f"undecided must be one of {get_args(Undecided)}, got {undecided!r}.")
    pairs = zip(params, routes, strict=True)
    cases = [(param, route) for param, route in pairs if param.trainable and not route.decided]
    if undecided == "allow":
        return
    if cases:
        message = _describe_undecided(cases, len(params))
    elif _is_flattened(params, routes):
        message = (
            f"the parameters are one bare vector of {params[0].shape[0]:,} elements, which gets "
            f"{routes[0].algorithm!r}. If optax.flatten or ravel_pytree made it of a network, the rule "
            "cannot see the matrices: give the optimizer the tree instead. If it really is a vector, say so "
            "with overrides={'': 'adamw'}."
        )
    else:
        return
    if undecided == "raise":
        raise ValueError(message)
    warn(message, RoutingWarning)


def _describe_undecided(cases: Sequence[tuple[Param, Route]], num_params: int) -> str:
    lines = "".join(f"\n  {param.path}  {param.shape}  {route.reason}" for param, route in cases)
    return (
        f"{len(cases)} of {num_params} parameters could be hidden matrices or not, and get 'celo2':{lines}\n"
        f"Say it with overrides={{{cases[0][0].path!r}: 'adamw'}} (or 'celo2')."
    )


def _is_flattened(params: Sequence[Param], routes: Sequence[Route]) -> bool:
    """Returns whether the only parameter is a long unnamed vector without an override."""
    if len(params) != 1 or params[0].path or params[0].rank != 1 or routes[0].reason == "override":
        return False
    return params[0].trainable and params[0].shape[0] >= FLAT_SIZE


def _make_route(network: Network, param: Param, finding: Finding, *, base: bool) -> Route:
    multiplies = finding.role in ("hidden", "head", "router") or not finding.decided
    numbers = param.matrix.numbers if param.matrix is not None and multiplies else None
    if base:
        return Route("celo2", "every parameter", numbers)
    if finding.role != "hidden" and finding.decided:
        return Route("adamw", finding.reason, numbers)
    reason = finding.reason
    if param.matrix is not None and looks_fused(
        param.names, param.matrix, by_size=network.looks_fused(param)
    ):
        reason += "; fused? see dimension_numbers"
    return Route("celo2", reason, numbers, finding.decided)
