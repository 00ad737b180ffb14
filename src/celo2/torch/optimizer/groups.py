"""Parameter groups of the optimizers: names, options and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from celo2._utils.ranges import check_betas, check_scale
from celo2._utils.user_warnings import warn
from celo2.routing import Route, RoutingWarning, check_algorithm
from celo2.torch.routing.labels import find_routes_by_name


def named_groups(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Returns a module's named parameters, except frozen ones of untrainable (quantised) dtypes."""
    return [
        (name, param)
        for name, param in module.named_parameters()
        if param.requires_grad or (param.layout == torch.strided and _is_trained(param.dtype))
    ]


def check_module(params: Any, module: Any) -> None:
    """Raises an error if `module=` is not a module, or differs from a module given as parameters.

    Raises:
        TypeError: `module` is not an `nn.Module`.
        ValueError: `params` is a different module.
    """
    if module is None:
        return
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be the nn.Module that holds the parameters, got {type(module).__name__}; pass the "
            "model itself, or leave it out."
        )
    if isinstance(params, nn.Module) and module is not params:
        raise ValueError(
            f"the parameters are those of one module ({type(params).__name__}), and module= is another "
            f"({type(module).__name__}); pass the model alone, as in Celo2(model)."
        )


def name_params(group: dict[str, Any], number: int, module: nn.Module | None) -> dict[str, Any]:
    """Adds names to a group of bare parameters: PyTorch requires them in all groups or in none.

    Args:
        group: As in `add_param_group`; a group with names, or any other object, is returned unchanged.
        number: The group's index, used to name parameters that the module does not contain.
        module: The module whose names are used.
    """
    if not isinstance(group, dict) or "param_names" in group or isinstance(group["params"], set):
        return group
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    names: dict[Tensor, str] = {} if module is None else {p: name for name, p in module.named_parameters()}
    if not all(isinstance(param, Tensor) for param in params):
        return {**group, "params": params}
    if not params:
        return {**group, "params": params, "param_names": []}
    named = [(names.get(p, _stranger(number, place)), p) for place, p in enumerate(params)]
    return {**group, "params": named}


def _stranger(number: int, place: int) -> str:
    """Returns a placeholder name for a parameter that the module does not contain."""
    return f"group {number}.{place}"


def list_names(names: Sequence[str]) -> str:
    """Joins the first five names and states how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def named_params(groups: Iterable[Mapping[str, Any]]) -> list[tuple[str, Tensor, Mapping[str, Any]]]:
    """Lists every parameter with its name, or else its group number and position, and its group."""
    entries = []
    for number, group in enumerate(groups):
        names = group.get("param_names") or [f"{number}.{i}" for i in range(len(group["params"]))]
        entries += [(name, p, group) for name, p in zip(names, group["params"], strict=True)]
    return entries


def route_stored(group: Mapping[str, Any], number: int, *, base: bool) -> list[Route]:
    """Returns the routes of a group without a module: by name if it has names, else the rule for rank ≥ 2.

    Args:
        group: A group of an optimizer.
        number: Its index.
        base: Whether the rule updates every parameter.
    """
    params, names = group["params"], group.get("param_names")
    if not names:
        return [_route_nameless(param, base=base) for param in params]
    routes = find_routes_by_name(zip(names, params, strict=True), base=base)
    return [
        _route_nameless(param, base=base) if name == _stranger(number, place) else _as_stored(route, param)
        for place, (name, route, param) in enumerate(zip(names, routes, params, strict=True))
    ]


def _as_stored(route: Route, param: Tensor) -> Route:
    """Drops the axes of a route whose only matrix is the parameter itself, so that states load either way."""
    whole = route.numbers is not None and param.ndim == 2 and route.numbers.output_splits == 1
    return route._replace(numbers=None) if whole else route


def tell_stored(
    groups: Iterable[Mapping[str, Any]],
    routes: Mapping[Tensor, Route],
    module: nn.Module | None,
    *,
    base: bool,
) -> None:
    """Warns about matrices that were routed without their module, unless their group sets the algorithm.

    Args:
        groups: The added groups.
        routes: The routes of their parameters.
        module: The given module, which may not contain all of them, or None.
        base: Whether the rule updates every parameter.
    """
    held = set() if module is None else set(module.parameters())
    bare = [
        (name, param)
        for name, param, group in named_params(groups)
        if group["algorithm"] is None and param.requires_grad and param.ndim > 1 and param not in held
    ]
    names = [f"{name} {tuple(param.shape)}" for name, param in bare if routes[param].algorithm == "celo2"]
    if not names:
        return
    one = len(names) == 1
    count, them = ("1 matrix", "it") if one else (f"{len(names)} matrices", "them")
    if module is None:
        opening = f"{count} came without the module that holds {them}"
        remedy = (
            "Pass the module: Celo2(model, lr=…), or groups with Celo2(groups, module=model); a trainer "
            "takes the finished optimizer (transformers: Trainer(optimizers=(Celo2(model, lr=…), None)))."
        )
    else:
        opening = f"the module does not hold {count} ({list_names(names)})"
        remedy = (
            "The usual reason is a copy of the model (an average of its weights, EMA) or a model that was "
            f"rebuilt: pass the module that holds {them}."
        )
    warn(
        f"{opening}, so {_tell_effect(one, base=base)} {remedy} {_tell_consent(one, base=base)}",
        RoutingWarning,
    )


def _tell_effect(one: bool, *, base: bool) -> str:
    if base:
        return "it is trained as it is stored." if one else "they are trained as they are stored."
    if one:
        return (
            "it gets the learned rule, and a convolution loses its axes: AdamW should train it if it is an "
            "embedding or an output head."
        )
    return (
        "all but those with telling names get the learned rule, and convolutions lose their axes: embeddings "
        "and output heads, which AdamW should train, are likely among them."
    )


def _tell_consent(one: bool, *, base: bool) -> str:
    case = "that is meant" if base else f"{'it' if one else 'every one'} is a hidden matrix"
    return f"If {case}, say so with algorithm='celo2'."


def _route_nameless(param: Tensor, *, base: bool) -> Route:
    if base:
        return Route("celo2", "every parameter, as stored")
    if sum(size > 1 for size in param.shape) > 1:
        return Route("celo2", "no module: a matrix as stored")
    return Route("adamw", f"rank {param.ndim}" if param.ndim < 2 else "no two axes longer than 1")


def check_param(param: Tensor, name: str, route: Route) -> None:
    """Raises a TypeError, with the remedy, for a parameter that its algorithm cannot train."""
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
    """Checks the types and ranges of a group's options.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: An option is out of its range.
    """
    scales = ("lr", "weight_decay", "adamw_lr_scale")
    for option in scales:
        check_scale(option, group[option], _is_tensor)
    if isinstance(group["lr"], Tensor):
        if group["lr"].numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(group['lr'].shape)}.")
        if group["foreach"] and not group["capturable"]:
            raise ValueError(
                "lr as a Tensor is not supported for capturable=False and foreach=True; use a float, "
                "capturable=True, or leave foreach None."
            )
    for option in scales:
        check_scale(option, float(group[option]))
    betas = "betas or adamw_betas"
    check_betas(betas, group["betas"], _is_tensor)
    check_betas(betas, [float(beta) for beta in group["betas"]])
    if group["foreach"] and group["fused"]:
        raise ValueError("foreach and fused cannot both be True; leave one of them None.")
    if group["algorithm"] is not None:
        check_algorithm(group["algorithm"], "a group's algorithm")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def choose_path(group: Mapping[str, Any]) -> dict[str, bool]:
    """Translates a group's `foreach` and `fused` into options of `batching.iterate_leaves`."""
    unsaid = group["foreach"] is None and group["fused"] is None
    return {"stack": group["foreach"] is not False, "kernels": bool(unsaid or group["fused"])}
