"""Networks of `transformers`: each parameter gets the algorithm and the axes that an expert would give it."""

from __future__ import annotations

import pytest
import torch

from celo2.torch import find_routes
from helpers.routing_proof import (
    transformers_encoders,
    transformers_models,
    transformers_vision,
)
from helpers.routing_proof.describe import check

MODELS = transformers_models.MODELS | transformers_encoders.MODELS | transformers_vision.MODELS


@pytest.mark.parametrize(("make", "expected"), MODELS.values(), ids=MODELS)
def test_transformers(make, expected) -> None:
    with torch.device("meta"):
        model = make()
    routes = find_routes(model, undecided="raise")
    check([(name, tuple(model.get_parameter(name).shape), route) for name, route in routes.items()], expected)
