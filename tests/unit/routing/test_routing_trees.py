"""Trees of Flax, Equinox, Haiku, MaxText and levanter: each leaf gets what an expert would give it."""

from __future__ import annotations

from typing import cast

import pytest

from celo2.jax.routing.labels import named_leaves, param_labels
from celo2.routing import Route
from celo2.routing.routes import Algorithm
from helpers.routing_proof import flax_trees, other_trees
from helpers.routing_proof.describe import check

TREES = flax_trees.TREES | other_trees.TREES


def routes_of(params) -> list:
    labels = [label for _, label in named_leaves(param_labels(params, undecided="raise"))]
    named = named_leaves(params)
    return [
        (path, tuple(leaf.shape), Route(cast(Algorithm, str(own)), own.reason, own.numbers, own.decided))
        for (path, leaf), own in zip(named, labels, strict=True)
    ]


@pytest.mark.parametrize(("make", "expected"), TREES.values(), ids=TREES)
def test_trees(make, expected) -> None:
    check(routes_of(make()), expected)
