"""Leaves that are stacked and updated together get what each gets alone."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import celo2
from celo2.jax import batching
from helpers import quick
from helpers.weights_examples import make_weights

SHAPES = [(), (), (5,), (5,), (4, 3), (4, 3), (3, 4), (2, 4, 3), (2, 4, 3), (5,), (0, 4), (0, 4)]


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests have two, and where arrays may be sharded none are stacked."""
    monkeypatch.setattr(batching, "on_one_device", lambda: True)


def make_tree(seed: int, dtypes: tuple[str, ...]) -> dict[str, jax.Array]:
    """Random leaves of `SHAPES`, the dtypes in turn."""
    rng = np.random.default_rng(seed)
    return {
        f"leaf{index:02}": jnp.asarray(rng.standard_normal(shape), dtype)
        for index, (shape, dtype) in enumerate(zip(SHAPES, itertools.cycle(dtypes)))
    }


def run(tree: dict[str, jax.Array], grads: list[dict[str, jax.Array]], **options: object) -> list:
    """Updates and state after two steps."""
    rule = celo2.scale_by_celo2(make_weights(**quick.SMALL_RULE, **options))
    state, update = rule.init(tree), jax.jit(rule.update)
    found = []
    for grad in grads:
        updates, state = update(grad, state, tree)
        found.append(updates)
    return [*found, state]


@pytest.mark.parametrize("orthogonalize", [False, True])
@pytest.mark.parametrize("dtypes", [("float32",), ("float32", "bfloat16", "bfloat16")])
def test_stacked_leaves_equal_single_ones(
    orthogonalize: bool, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_tree(0, dtypes)
    grads = [make_tree(seed, dtypes) for seed in (1, 2)]
    together = run(params, grads, orthogonalize=orthogonalize)
    monkeypatch.setattr(batching, "on_one_device", lambda: False)
    alone = run(params, grads, orthogonalize=orthogonalize)
    assert jax.tree.structure(together) == jax.tree.structure(alone)
    for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        np.testing.assert_allclose(
            np.asarray(left, np.float32), np.asarray(right, np.float32), rtol=1e-5, atol=1e-6
        )


def test_a_deep_network_compiles_few_programs() -> None:
    """Twelve equal vectors reduce as one array: the compiled step does not grow with the depth."""

    def num_instructions(depth: int) -> int:
        params = {f"bias{index}": jnp.ones(7) for index in range(depth)}
        rule = celo2.scale_by_celo2(make_weights(**quick.SMALL_RULE, orthogonalize=False))
        text = jax.jit(rule.update).lower(params, rule.init(params), params).as_text()
        return text.count("stablehlo.rsqrt")

    assert num_instructions(12) == num_instructions(2) > 0
