"""Parts of a stack are what was stacked, under all transformations; deep networks compile no more kernels."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import celo2
from celo2.jax import batching
from celo2.jax.stacking import stack, unstack

NUMBER = 4
METADATA = re.compile(r", metadata=\{[^}]*\}|\w+\.?\d*: (?=\w+\[)")
NAME = re.compile(r"%[\w.\-]+")


def make_trees() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"float": jnp.asarray(rng.standard_normal((3, 2)), jnp.float32), "bool": jnp.asarray(index % 2 == 0)}
        for index in range(NUMBER)
    ]


def check_equal(found: Any, expected: Any) -> None:
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)


def test_parts_are_the_trees() -> None:
    trees, count = make_trees(), jnp.int32(1)
    check_equal(unstack(stack(trees), NUMBER, count), trees)
    check_equal(jax.jit(lambda tree, count: unstack(tree, NUMBER, count))(stack(trees), count), trees)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_parts_under_vmap(axes: tuple[int | None, int | None]) -> None:
    trees, counts = make_trees(), jnp.arange(1, 6)
    together = stack(trees)
    many = jax.tree.map(lambda array: jnp.stack([array] * 5), together)
    arguments = (many if axes[0] == 0 else together, counts if axes[1] == 0 else counts[0])
    found = jax.jit(jax.vmap(lambda tree, count: unstack(tree, NUMBER, count), axes))(*arguments)
    check_equal(jax.tree.map(lambda array: array[2], found), trees)


def test_places_stay_known_under_vmap() -> None:
    """Batched places would make each slice a gather."""
    batched = jax.vmap(lambda tree, count: unstack(tree, NUMBER, count))
    text = str(jax.make_jaxpr(batched)(jnp.ones((5, NUMBER, 3)), jnp.arange(1, 6)))
    assert "gather" not in text
    assert "while" not in text


def test_derivatives_pass_through() -> None:
    @jax.jit
    def total(array: jax.Array) -> jax.Array:
        return sum(
            (index + 1.0) * jnp.sum(part) for index, part in enumerate(unstack(array, NUMBER, jnp.int32(1)))
        )  # type: ignore[return-value]

    array = jnp.ones((NUMBER, 3))
    _, tangent = jax.jvp(total, (array,), (array,))
    assert float(tangent) == 3 * sum(range(1, NUMBER + 1))
    expected = np.arange(1.0, NUMBER + 1)[:, None] * np.ones(3)
    np.testing.assert_array_equal(jax.grad(total)(array), expected)
    np.testing.assert_array_equal(jax.vmap(jax.grad(total))(jnp.stack([array, array]))[1], expected)


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_a_step_has_derivatives(state_dtype: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of equal vectors are those of each alone."""
    tx = celo2.scale_by_celo2(orthogonalize=False, state_dtype=state_dtype)

    def total(grads: dict[str, jax.Array]) -> jax.Array:
        updates, _ = tx.update(grads, tx.init(grads), grads)
        return sum(jnp.sum(jnp.sin(update)) for update in jax.tree.leaves(updates))  # type: ignore[return-value]

    grads = {"a": jnp.linspace(-1.0, 2.0, 4), "b": jnp.linspace(0.1, 3.0, 4)}
    alone = jax.jit(jax.grad(total))(grads)
    monkeypatch.setattr(batching, "on_one_device", lambda: True)
    together = jax.jit(jax.grad(total))(grads)
    for name in grads:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5, atol=1e-6)


def count_kernels(depth: int) -> int:
    """The number of distinct fused computations of a step on `depth` equal layers of vectors and a matrix."""
    layer = {"kernel": jnp.ones((24, 16)), "bias": jnp.zeros(16), "scale": jnp.ones(16)}
    params = {f"layer_{index}": layer for index in range(depth)}
    tx = celo2.celo2_base(1e-3)
    lowered = jax.jit(tx.update).lower(params, tx.init(params), params)
    text = lowered.compile(celo2.compiler_options("cpu")).as_text() or ""
    kernels = set()
    for computation in text.split("\n\n"):
        if not computation.lstrip().startswith("%fused_computation"):
            continue
        names: dict[str, str] = {}
        body = METADATA.sub("", computation)
        body = NAME.sub(lambda match, names=names: names.setdefault(match[0], f"%{len(names)}"), body)
        # The sizes of a stack differ with the depth, and so do the kernels that compute on all of it.
        kernels.add(re.sub(rf"\b{2 * depth}\b", "N", body))
    return len(kernels)


def test_deep_networks_compile_no_more_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "on_one_device", lambda: True)
    shallow, deep = count_kernels(7), count_kernels(14)
    assert shallow > 10
    assert deep <= shallow + 3  # with slices at known places, five for each vector
