"""The common base of `Celo2` and `Celo2Base`: construction, groups, state, steps and checkpoints."""

from __future__ import annotations

import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from celo2._utils.user_warnings import warn
from celo2.routing import Route
from celo2.torch.batching import Leaf, iterate_leaves
from celo2.torch.dimensions import DimensionNumbers, Layout, make_layout
from celo2.torch.eigenbasis import matrix_numbers
from celo2.torch.harness import Parts, init_state, update_all
from celo2.torch.kernels.dispatch import check_kernels
from celo2.torch.matrices import Target
from celo2.torch.optimizer import adamw
from celo2.torch.optimizer.adamw import AdamWLeaf
from celo2.torch.optimizer.groups import (
    check_group,
    check_module,
    check_param,
    choose_path,
    list_names,
    name_params,
    named_groups,
    named_params,
    rename_options,
    route_stored,
    tell_stored,
)
from celo2.torch.optimizer.loading import Checked, fit_state_dict
from celo2.torch.optimizer.nonfinite import find_nonfinite
from celo2.torch.optimizer.state import (
    check_state_dtype,
    init_adamw,
    init_rule,
    rule_accumulators,
)
from celo2.torch.routing.labels import find_routes, fit_route, format_routes
from celo2.torch.sharding import step as sharded_step
from celo2.torch.sharding.dtensor import (
    ShardingSpecs,
    check_wrappers,
    is_dtensor,
    local,
    local_grad,
)
from celo2.torch.sharding.runtime import run_alone, run_tasks
from celo2.torch.weights import make_network
from celo2.weights.checkpoint import Weights

Theta = Weights | Mapping[str, Any] | str | os.PathLike[str]
Params = nn.Module | Iterable[Any]
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _uncompiled(method: _Method) -> _Method:
    """Lets a compiled training step call the method uncompiled; PyTorch's decorator hides the types."""
    return cast(_Method, torch.compiler.disable(method))


class RuleOptimizer(Optimizer):
    """A `torch.optim.Optimizer` that updates each parameter by the rule or by AdamW; see `Celo2`."""

    _base: bool  # whether the rule updates every parameter

    def __init__(
        self,
        params: Params,
        defaults: dict[str, Any],
        weights: Theta,
        module: nn.Module | None,
        state_dtype: torch.dtype | None,
        process_group: Any,
        skip: Mapping[str, bool],
        coefficients: Mapping[str, Any],
        parts: Parts,
        **routing: Any,
    ):
        if self._base and parts != Parts():
            raise ValueError(
                "harness and match: Celo2Base takes the network's steps as they are; leave them out, or use "
                "Celo2."
            )
        if self._base and coefficients:
            raise ValueError("ns_coeffs: Celo2Base has no Newton–Schulz; leave the option out, or use Celo2.")
        self._network = make_network(
            weights,
            orthogonalize=not self._base,
            newton_schulz=parts.harness.has_newton_schulz,
            skip_zero_gradients=skip["zero"],
            **coefficients,
        )
        self._parts = parts
        self._skip_nonfinite, self.num_nonfinite = skip["nonfinite"], 0
        self._state_dtype = check_state_dtype(state_dtype)
        if parts.harness.eigenbasis_every is not None and state_dtype == torch.int8:
            raise ValueError(
                "state_dtype=torch.int8 does not go with eigenbasis_every, whose bases the codes cannot "
                "follow; use torch.bfloat16."
            )
        self._routes: dict[Tensor, Route] = {}
        self._places: list[list[Route]] = []  # the routes of every group's parameters, in order
        self._sharding = ShardingSpecs(process_group)
        check_module(params, module)
        if isinstance(params, nn.Module):
            module, params = params, named_groups(params)
        elif any(routing[option] for option in routing) and module is None:
            given = [option for option in routing if routing[option]]
            raise ValueError(f"{', '.join(given)} need the module: pass it as the parameters or as module=.")
        self._find_module: Callable[[], nn.Module | None] = lambda: None
        self._routing = routing
        if module is not None:
            check_wrappers(module)
            self._find_module = weakref.ref(module)
        self._constructed = False
        super().__init__(params, defaults)
        self._constructed = True
        if module is not None or not self._base:
            tell_stored(self.param_groups, self._routes, module, base=self._base)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as `torch.optim.Optimizer` does, and rejects parameters that cannot be trained.

        Parameters are routed by the module that the optimizer was given, as long as it is alive and the
        optimizer is not a copy; parameters that the module does not contain are used as stored, with a
        `RoutingWarning`. The group needs no names: the module provides them.
        """
        module, groups = self._find_module(), self.param_groups
        has_names = "param_names" in groups[0] if groups else module is not None
        if has_names:
            param_group = name_params(param_group, len(groups), module)
        super().add_param_group(rename_options(param_group))
        group = self.param_groups[-1]
        try:
            check_group(group)
            if group["capturable"] and self._skip_nonfinite:
                raise ValueError(
                    "skip_nonfinite_gradients waits for the device, so it does not go with capturable=True; "
                    "use torch.amp.GradScaler, or leave one of them out."
                )
            if group["capturable"] and self._parts.harness.eigenbasis_every is not None:
                raise ValueError(
                    "eigenbasis_every changes bases at certain steps, whose number a graph does not know, so "
                    "it does not go with capturable=True; leave one of them out."
                )
            routes = self._find_routes(group)
            for index, param in enumerate(group["params"]):
                name = group.get("param_names", {index: f"parameter {index}"})[index]
                route = self._route(param, group)
                check_param(param, name, route)
                if group["fused"] and route.algorithm == "celo2":
                    check_kernels(self._network, param.device)
        except (RuntimeError, TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._places.append(routes)
        if module is not None and self._constructed:
            tell_stored([group], self._routes, module, base=self._base)

    def _find_routes(self, group: Mapping[str, Any]) -> list[Route]:
        """Finds the routes of a new group and stores them in `_routes`."""
        module, params = self._find_module(), group["params"]
        if module is not None and any(param not in self._routes for param in params):
            for name, route in find_routes(module, base=self._base, **self._routing).items():
                param = module.get_parameter(name)
                self._routes.setdefault(param, route)
        if any(param not in self._routes for param in params):  # not in a module
            routes = route_stored(group, len(self.param_groups) - 1, base=self._base)
            stored = zip(params, routes, strict=True)
            self._routes = {param: fit_route(route, param) for param, route in stored} | self._routes
        return [self._routes[param] for param in params]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled state; groups from an older release get defaults for new options."""
        loaded = state["state"].items()
        own = {param: found.state if isinstance(found, Checked) else found for param, found in loaded}
        state["state"] = defaultdict(dict, own)
        state["param_groups"] = [rename_options(group) for group in state["param_groups"]]
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # added by PyTorch, not supported by Celo2
        self.__dict__.setdefault("_sharding", ShardingSpecs())
        self.__dict__.setdefault("_find_module", lambda: None)
        self.__dict__.setdefault("_parts", Parts())
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for copies and pickles; unlike a state dict, it includes routing and weights."""
        names = (
            "_network",
            "_state_dtype",
            "_routes",
            "_places",
            "_skip_nonfinite",
            "num_nonfinite",
            "_parts",
        )
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    @_uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: Recomputes the loss and returns it.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: A gradient is sparse.
        """
        self._check_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        offset, left_out = 0, self._find_nonfinite() if self._skip_nonfinite else ()
        for group in self.param_groups:
            by_rule, by_adamw = self._collect(group, offset, left_out)
            self._update_by_rule(by_rule, group)
            adamw.update(by_adamw, group, cautious=self._parts.harness.cautious_decay)
            offset += len(group["params"])
        return loss

    def _update_by_rule(self, targets: list[Target], group: dict[str, Any]) -> None:
        path, buckets = choose_path(group), self._sharding.buckets
        if self._parts.change_matrices:
            update_all(self._network, self._parts, targets, group, buckets, **path)
            return
        alone = [target.leaf for target in targets if target.spec is None]
        self._apply(group, iterate_leaves(self._network, alone, **path))
        shared = [(target.leaf, target.spec) for target in targets if target.spec is not None]
        kernels = path["kernels"]
        tasks = [sharded_step.update(self._network, *pair, kernels=kernels) for pair in shared]
        leaves, specs = [leaf for leaf, _ in shared], [spec for _, spec in shared]
        steps = run_tasks(self._network, tasks, leaves, specs, buckets)
        self._apply(group, zip(leaves, steps, strict=True))

    def _check_capture(self) -> None:
        """Rejects graph capture without `capturable`; PyTorch has had two names for its check."""
        check = getattr(self, "_accelerator_graph_capture_health_check", None)
        (check or self._cuda_graph_capture_health_check)()

    def _find_nonfinite(self) -> set[Tensor]:
        """Finds and counts the parameters that this step skips, and warns the first time."""
        found = find_nonfinite(param for group in self.param_groups for param in group["params"])
        if found and not self.num_nonfinite:
            names = [name for name, param, _ in named_params(self.param_groups) if param in found]
            warn(
                f"the gradients of {list_names(names)} are not finite. Such parameters are left out of a "
                "step and counted in num_nonfinite; this is said once."
            )
        self.num_nonfinite += len(found)
        return found

    def _collect(
        self, group: dict[str, Any], offset: int, left_out: Collection[Tensor]
    ) -> tuple[list[Target], list[AdamWLeaf]]:
        """Collects the leaves of a group by algorithm; state is created at the first gradient."""
        by_rule: list[Target] = []
        by_adamw: list[AdamWLeaf] = []
        for place, param in enumerate(group["params"]):
            grad, route = param.grad, self._route(param, group)
            if param.requires_grad and is_dtensor(param):  # saved by all processes, or by none
                self._complete_state(param, route, group)
            if grad is None or param in left_out:
                continue
            if grad.is_sparse or grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} does not take sparse gradients; construct the embedding with "
                    "sparse=False, or give its parameters to torch.optim.SparseAdam."
                )
            state = self._complete_state(param, route, group)
            own, grad = local(param), local_grad(grad, param)
            if route.algorithm == "adamw":
                moments = local(state["exp_avg"]), local(state["exp_avg_sq"])
                by_adamw.append(AdamWLeaf(grad, own, *moments, state["step"]))
                continue
            state["step"] += 1
            signed = -grad if group["maximize"] else grad
            by_rule.append(self._target(param, route, signed, own, state, offset + place))
        return by_rule, by_adamw

    def _target(
        self, param: Tensor, route: Route, grad: Tensor, own: Tensor, state: dict[str, Tensor], number: int
    ) -> Target:
        layout, numbers = self._layout(param, route), self._numbers(param, route)
        leaf = Leaf(grad, own, rule_accumulators(state), state["step"], layout, number)
        orthogonalize = self._network.options.orthogonalize
        spec = self._sharding.find(param, layout, numbers, orthogonalize=orthogonalize)
        return Target(leaf, spec, state, param)

    def _apply(self, group: dict[str, Any], steps: Iterable[tuple[Leaf, Tensor]]) -> None:
        """Applies `p ← p - lr (rms · step + weight_decay · p)`; the steps are overwritten."""
        lr, decay = group["lr"], group["weight_decay"]
        lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
        rate: Any = lr if self._parts.rms == 1.0 else lr * self._parts.rms
        for leaf, step in steps:
            param = leaf.param.to(step.dtype)
            if decay:
                param = param.mul_(1.0 - lr * decay)
            param = param.sub_(step.mul_(rate)) if isinstance(lr, Tensor) else param.sub_(step, alpha=rate)
            if param is not leaf.param:
                leaf.param.copy_(param)

    def _complete_state(self, param: Tensor, route: Route, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the parameter's state, initialised if missing; keeps entries added by others."""
        state = self.state[param]
        if "step" not in state:
            state.update(self._init_state(param, route, group))
        return state

    def _init_state(self, param: Tensor, route: Route, group: Mapping[str, Any]) -> dict[str, Tensor]:
        fused = bool(group["fused"])
        if route.algorithm == "adamw":
            return init_adamw(param, on_device=bool(group["capturable"] or group["fused"]), fused=fused)
        layout, config, on_device = (
            self._layout(param, route),
            self._network.options,
            bool(group["capturable"]),
        )
        state = init_rule(param, layout, config, self._state_dtype, on_device=on_device, fused=fused)
        if self._parts.change_matrices:
            own = local(param)
            target = self._target(param, route, own, own, state, 0)
            task = init_state(self._parts, target)
            if target.spec is None:
                return state | run_alone(task)
            [added] = run_tasks(self._network, [task], [target.leaf], [target.spec], self._sharding.buckets)
            state |= added
        return state

    def _route(self, param: Tensor, group: Mapping[str, Any]) -> Route:
        if param not in self._routes:
            self._adopt()
        route = self._routes[param]
        if group["algorithm"] is None:
            return route
        return route._replace(algorithm=group["algorithm"], reason="the group's algorithm")

    def _adopt(self) -> None:
        """Routes parameters that a trainer has substituted for the given ones, such as their shards."""
        params = [group["params"] for group in self.param_groups]
        if [len(own) for own in params] != [len(routes) for routes in self._places]:
            raise ValueError("the groups have lost or gained parameters; construct the optimizer anew.")
        pairs = [pair for both in zip(params, self._places, strict=True) for pair in zip(*both, strict=True)]
        self._routes = dict(pairs)

    def _layout(self, param: Tensor, route: Route) -> Layout:
        return make_layout(tuple(param.shape), self._numbers(param, route))

    def _numbers(self, param: Tensor, route: Route) -> DimensionNumbers | None:
        whole = self._parts.harness.eigenbasis_every is not None
        return matrix_numbers(tuple(param.shape), route.numbers) if whole else route.numbers

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a result of `state_dict`; training then continues bit for bit.

        Parameters are matched by name if both sides have the same names, else by position. State keeps its
        dtypes, whatever the parameters', and entries added by others. If it does not fit, nothing is
        changed.

        Raises:
            ValueError: The groups differ, or the state was saved under another routing.
        """

        def fit(_: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            return fit_state_dict(
                loaded, self.param_groups, lambda p, group: self._init_state(p, self._route(p, group), group)
            )

        handle = self.register_load_state_dict_pre_hook(fit)  # runs after other hooks
        try:
            super().load_state_dict(state_dict)  # type: ignore[arg-type]
        finally:
            handle.remove()

    def __repr__(self) -> str:
        """Returns the groups' options and the routing table."""
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            options = {k: v for k, v in sorted(group.items()) if k not in ("params", "param_names")}
            lines.append(f"Parameter Group {number}")
            lines += [f"    {option}: {value}" for option, value in options.items()]
        named = named_params(self.param_groups)
        table = format_routes([(name, p, self._route(p, group)) for name, p, group in named])
        return "\n".join([*lines, ")", table])
