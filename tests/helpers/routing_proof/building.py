"""Small modules with the names and classes of other libraries' networks, for the tables of routes.

They have layers and no forward pass, which routing does not look at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Model = tuple[Callable[[], nn.Module], dict[str, str]]


def net(kind: str = "Net", /, **children: Any) -> nn.Module:
    """A module of a class of this name, with these layers, lists of layers, and parameters given by shape."""
    module = type(kind, (nn.Module,), {})()
    for name, child in children.items():
        if isinstance(child, tuple):
            module.register_parameter(name, nn.Parameter(torch.zeros(child)))
        elif isinstance(child, list):
            module.add_module(name, nn.ModuleList(child))
        elif isinstance(child, Mapping):
            module.add_module(name, net(**child))
        else:
            module.add_module(name, child)
    return module


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def chain(*sizes: int) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv(inputs: int, outputs: int, window: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, window, **options)
