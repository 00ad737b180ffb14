"""Networks of other libraries, as twins: each parameter gets what an expert would give it, however it is wrapped."""

from __future__ import annotations

import pytest
import torch
from routing_proof.describe import check
from routing_proof.torch_twins import MODELS
from torch import nn

from celo2.torch import find_routes


def routes_of(model: nn.Module) -> list:
    routes = find_routes(model, undecided="raise")
    return [(name, tuple(model.get_parameter(name).shape), route) for name, route in routes.items()]


@pytest.mark.parametrize(("make", "expected"), MODELS.values(), ids=MODELS)
def test_twins(make, expected) -> None:
    with torch.device("meta"):
        model = make()
    check(routes_of(model), expected)
