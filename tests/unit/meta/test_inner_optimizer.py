"""The inner optimizer sees the matrices of the public one, with their longer axis last."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
import pytest

from celo2 import DimensionNumbers, find_dimension_numbers
from celo2.jax.transform import scale_by_celo2
from celo2.meta.config import MetaConfig
from celo2.meta.inner.optimizer import make_inner_optimizer
from celo2.meta.inner.theta import init_theta

SHAPES = {
    "tall": (12, 5),
    "wide": (5, 12),
    "square": (6, 6),
    "stack": (3, 8, 4),
    "tied_stack": (8, 8, 4),
    "kernel": (3, 3, 6, 2),
    "vector": (7,),
}
TOLERANCE = 2e-6  # sums are taken in another order


@pytest.mark.usefixtures("small_meta_rule")
@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_turned_matrices_take_the_same_steps(variant) -> None:
    config = MetaConfig(variant=variant, inner_learning_rate=1.0)
    theta = init_theta(jax.random.key(0), config)
    matrices = {name: shape for name, shape in SHAPES.items() if len(shape) > 1 or variant == "celo2-base"}
    keys = iter(jax.random.split(jax.random.key(1), 4 * len(matrices)))

    def draw() -> dict[str, jax.Array]:
        return {name: jax.random.normal(next(keys), shape) for name, shape in matrices.items()}

    params, grads = draw(), [draw() for _ in range(3)]
    numbers = find_dimension_numbers(params, base=variant == "celo2-base")
    assert numbers["kernel"] == DimensionNumbers((0, 1, 2), 3)
    rule = scale_by_celo2(theta, orthogonalize=config.rule.orthogonalize, dimension_numbers=numbers)
    plain = optax.chain(rule, optax.scale(-1.0))
    results = []
    for optimizer in (make_inner_optimizer(theta, config), plain):
        state, step, updates = optimizer.init(params), jax.jit(optimizer.update), None
        for grad in grads:
            updates, state = step(grad, state, params)
        results.append(updates)
    for name, (update, expected) in ((name, (results[0][name], results[1][name])) for name in matrices):
        assert update.shape == matrices[name]
        error = np.max(np.abs(update - expected)) / np.max(np.abs(expected))
        assert error < TOLERANCE, (name, error)


def test_state_holds_the_longer_axis_last() -> None:
    config = dataclasses.replace(MetaConfig(), variant="celo2-base")
    state = make_inner_optimizer(init_theta(jax.random.key(0), config), config).init(
        {"tall": np.zeros((12, 5), np.float32)}
    )
    assert {leaf.shape for leaf in jax.tree.leaves(state)} >= {(5, 12)}
    assert (12, 5) not in {leaf.shape for leaf in jax.tree.leaves(state)}
