"""Parameter groups of the optimizers: names, options and their checks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from celo2.routing import Route, check_algorithm
from celo2.routing.routes import warn
from celo2.torch.routing.labels import find_routes_by_name


def named_groups(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Returns a module's named parameters, without frozen ones of untrainable (quantised) dtypes."""
    return [
        (name, param)
        for name, param in module.named_parameters()
        if param.requires_grad or (param.layout == torch.strided and _is_trained(param.dtype))
    ]


def name_params(group: dict[str, Any], number: int, module: nn.Module | None) -> dict[str, Any]:
    """Adds names to a group of bare parameters, for an optimizer whose other groups have some.

    Args:
        group: As `add_param_group` takes it; one with names, or any other object, is returned unchanged.
        number: The group's index, used in the names of parameters that the module does not hold.
        module: The module whose names are used.
    """
    if not isinstance(group, dict) or "param_names" in group or isinstance(group["params"], set):
        return group
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    names: dict[Tensor, str] = {} if module is None else {p: name for name, p in module.named_parameters()}
    if not all(isinstance(param, Tensor) for param in params):
        return {**group, "params": params}
    named = [(names.get(p, f"group {number}.{place}"), p) for place, p in enumerate(params)]
    return {**group, "params": named}


def route_stored(group: Mapping[str, Any], *, base: bool) -> list[Route]:
    """Returns the routes of a group without a module: by its names if any, else the rule for rank ≥ 2."""
    params, names = group["params"], group.get("param_names")
    if names:
        routes = find_routes_by_name(zip(names, params, strict=True), base=base)
        return [_as_stored(route, param) for route, param in zip(routes, params, strict=True)]
    return [_route_nameless(param, base=base) for param in params]


def _as_stored(route: Route, param: Tensor) -> Route:
    """Drops the axes of a route whose one matrix is the parameter, so that states load either way."""
    whole = route.numbers is not None and param.ndim == 2 and route.numbers.output_splits == 1
    return route._replace(numbers=None) if whole else route


def tell_stored(groups: Iterable[Mapping[str, Any]], routes: Mapping[Tensor, Route]) -> None:
    """Warns of matrices that came without a module, unless their group's algorithm is given."""
    bare = [p for group in groups if group["algorithm"] is None for p in group["params"]]
    bare = [p for p in bare if p.requires_grad and routes[p].algorithm == "celo2"]
    if bare:
        warn(
            f"{len(bare)} matrices came without the module that holds them, so all but those with telling "
            "names get the learned rule, and convolutions lose their axes: embeddings and output heads, "
            "which AdamW should train, are likely among them. Pass the module: Celo2(model, lr=…), or groups "
            "with Celo2(groups, module=model); a trainer takes the finished optimizer (transformers: "
            "Trainer(optimizers=(Celo2(model, lr=…), None))). If every one is a hidden matrix, say so with "
            "algorithm='celo2'."
        )


def _route_nameless(param: Tensor, *, base: bool) -> Route:
    if base:
        return Route("celo2", "every parameter, as stored")
    if sum(size > 1 for size in param.shape) > 1:
        return Route("celo2", "no module: a matrix as stored")
    return Route("adamw", f"rank {param.ndim}" if param.ndim < 2 else "no two axes longer than 1")


def check_param(param: Tensor, name: str, route: Route) -> None:
    """Raises a TypeError for a parameter that its algorithm cannot train, with the remedy."""
    if param.layout != torch.strided:
        raise TypeError(
            f"{name} is a sparse tensor ({param.layout}); make it dense with .to_dense(), or give it to "
            "torch.optim.SparseAdam."
        )
    if param.is_complex() and route.algorithm == "celo2":
        raise TypeError(
            f"{name} is complex ({param.dtype}), which the rule does not train ({route.reason}); leave it to "
            "AdamW, or train torch.view_as_real(parameter)."
        )
    if not _is_trained(param.dtype):
        raise TypeError(
            f"{name} has dtype {param.dtype}, expected float16, bfloat16, float32 or float64; convert it, or "
            "leave it out of the parameters."
        )


def _is_trained(dtype: torch.dtype) -> bool:
    return dtype.is_complex or (dtype.is_floating_point and dtype.itemsize >= 2)


def rename_options(group: dict[str, Any]) -> dict[str, Any]:
    """Returns a group with canonical option names: `adamw_betas` is an alias of `betas`."""
    if not isinstance(group, dict) or "adamw_betas" not in group:
        return group
    options = dict(group)
    betas = options.pop("adamw_betas")
    if options.setdefault("betas", betas) != betas:
        raise ValueError(
            f"betas and adamw_betas are the same option, got {group['betas']} and {betas}; give one of them."
        )
    return options


def check_group(group: dict[str, Any]) -> None:
    """Raises a ValueError for an option of a group that is out of its range."""
    if isinstance(group["lr"], Tensor):
        if group["lr"].numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(group['lr'].shape)}.")
        if group["foreach"] and not group["capturable"]:
            raise ValueError(
                "lr as a Tensor is not supported for capturable=False and foreach=True; use a float, "
                "capturable=True, or leave foreach None."
            )
    for option in ("lr", "weight_decay", "adamw_lr_scale"):
        value = float(group[option])
        if not 0 <= value < math.inf:
            raise ValueError(f"{option} must be finite and not negative, got {group[option]}.")
    betas = group["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas or adamw_betas must be two decays in [0, 1), got {betas}.")
    if group["foreach"] and group["fused"]:
        raise ValueError("foreach and fused cannot both be True; leave one of them None.")
    if group["algorithm"] is not None:
        check_algorithm(group["algorithm"], "a group's algorithm")


def choose_path(group: Mapping[str, Any]) -> dict[str, bool]:
    """Translates a group's `foreach` and `fused` into options of `batching.iterate_leaves`."""
    unsaid = group["foreach"] is None and group["fused"] is None
    return {"stack": group["foreach"] is not False, "kernels": bool(unsaid or group["fused"])}
