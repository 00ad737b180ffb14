"""One network in PyTorch and in JAX: the same algorithm for each parameter, and the same matrices."""

from __future__ import annotations

import pytest
import torch
from test_routing_trees import routes_of as routes_of_tree
from test_routing_twins import routes_of as routes_of_module

from helpers.routing_proof.both_frameworks import NETWORKS, build_jax, build_torch
from helpers.routing_proof.describe import check, describe, plain_name


def built(spec):
    with torch.device("meta"):
        return routes_of_module(build_torch(spec)), routes_of_tree(build_jax(spec))


@pytest.mark.parametrize(("spec", "expected"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("framework", [0, 1], ids=["torch", "jax"])
def test_both_frameworks(spec, expected, framework: int) -> None:
    check(built(spec)[framework], expected)


@pytest.mark.parametrize("spec", [spec for spec, _ in NETWORKS.values()], ids=NETWORKS)
def test_both_give_the_same_answer(spec) -> None:
    """By the same evidence, and to the same matrices, whatever the storage."""
    answers = []
    for found in built(spec):
        matrices = [entry for entry in found if sum(size > 1 for size in entry[1]) > 1]
        answers.append(
            {plain_name(name): describe(size, route).partition(" [")[0] for name, size, route in matrices}
        )
    assert answers[0] == answers[1]
