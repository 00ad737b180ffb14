"""Twins of networks of other libraries: each parameter gets what an expert would give it, in any wrapper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from celo2.torch import find_routes
from helpers.routing_proof import other_twins, vision_twins
from helpers.routing_proof.describe import check

MODELS = vision_twins.MODELS | other_twins.MODELS


def routes_of(model: nn.Module) -> list:
    routes = find_routes(model, undecided="raise")
    return [(name, tuple(model.get_parameter(name).shape), route) for name, route in routes.items()]


@pytest.mark.parametrize(("make", "expected"), MODELS.values(), ids=MODELS)
def test_twins(make, expected) -> None:
    with torch.device("meta"):
        model = make()
    check(routes_of(model), expected)


def wrapped(kind: str, attribute: str, model: nn.Module) -> nn.Module:
    wrapper = type(kind, (nn.Module,), {})()
    wrapper.add_module(attribute, model)
    return wrapper


def with_loss(wrapper: nn.Module) -> nn.Module:
    """With a temperature that is learned, and a network that the loss compares features of."""
    wrapper.register_parameter("log_temperature", nn.Parameter(torch.zeros(1)))
    wrapper.add_module("loss", nn.Sequential(nn.Linear(101, 103), nn.ReLU(), nn.Linear(103, 101)))
    return wrapper


WRAPPERS = {
    "DataParallel": lambda model: wrapped("DataParallel", "module", model),
    "DistributedDataParallel": lambda model: wrapped("DistributedDataParallel", "module", model),
    "torch.compile": lambda model: wrapped("OptimizedModule", "_orig_mod", model),
    "a trainer's class": lambda model: wrapped("LitClassifier", "network", model),
    "a trainer's class with a loss of its own": lambda model: with_loss(
        wrapped("LitModel", "network", model)
    ),
    "both": lambda model: wrapped("Engine", "model", wrapped("DataParallel", "module", model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("make", [make for make, _ in MODELS.values()], ids=MODELS)
def test_a_wrapper_changes_no_route(make, wrap) -> None:
    with torch.device("meta"):
        model = make()
    plain, inside = find_routes(model), find_routes(wrap(model))
    own = [route for name, route in inside.items() if not name.startswith(("loss.", "log_temperature"))]
    assert [route[::2] for route in own] == [route[::2] for route in plain.values()]  # not the reasons
    assert all(route.decided for route in own)


def reverse(module: nn.Module) -> None:
    """Registers everything the other way round, but for what has an order by its numbers."""
    for child in module.children():
        reverse(child)
    entries: dict[str, Any]
    for entries in (module._modules, module._parameters):
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            for name in list(entries)[::-1]:
                entries[name] = entries.pop(name)


@pytest.mark.parametrize("make", [make for make, _ in MODELS.values()], ids=MODELS)
def test_the_order_of_registration_changes_no_route(make) -> None:
    with torch.device("meta"):
        model, other = make(), make()
    reverse(other)
    plain, reversed_ = find_routes(model), find_routes(other)
    assert list(plain) != list(reversed_) or len(plain) < 5
    assert reversed_ == plain
