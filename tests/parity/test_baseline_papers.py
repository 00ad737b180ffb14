"""The project's own hand-designed optimizers against their papers' algorithm boxes in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.baselines.adamuon import scale_by_adamuon
from celo2.baselines.normuon import scale_by_normuon
from celo2.baselines.shampoo import scale_by_shampoo
from celo2.baselines.soap import scale_by_soap
from helpers.tolerances import relative_error, tolerance
from oracle import baselines as oracle

STEPS = 7
EVERY = 3  # so that the bases and roots are renewed twice


@pytest.fixture(autouse=True)
def standard_promotion_of_adam(request: pytest.FixtureRequest) -> Iterator[None]:
    """Optax's Adam, which SOAP runs, does not obey strict promotion; the package's own code does."""
    with jax.numpy_dtype_promotion("standard" if "soap" in request.node.name else "strict"):
        yield


def make_grads(rows: int, columns: int) -> list[np.ndarray]:
    """Correlated gradients: a common part and noise."""
    rng = np.random.default_rng(rows + 10 * columns)
    common = rng.standard_normal((rows, columns))
    return [common + rng.standard_normal((rows, columns)) for _ in range(STEPS)]


def replay(tx: optax.GradientTransformation, grads: list[np.ndarray], dtype: Any) -> list[np.ndarray]:
    with jax.enable_x64(dtype == np.float64):
        state = tx.init({"w": jnp.zeros(grads[0].shape, dtype)})
        update, steps = jax.jit(tx.update), []
        for grad in grads:
            updates, state = update({"w": jnp.asarray(grad, dtype)}, state)
            steps.append(np.asarray(updates["w"]))
        return steps


def transposed(expected: Callable[..., list[np.ndarray]]) -> Callable[..., list[np.ndarray]]:
    """A neuron is a row in the paper and a column here."""
    return lambda grads: [step.T for step in expected([grad.T for grad in grads])]


CASES = {
    "adamuon": (scale_by_adamuon(), oracle.adamuon, (4, 3)),
    "normuon-tall": (
        scale_by_normuon(nesterov=False),
        transposed(lambda grads: oracle.normuon(grads, nesterov=False)),
        (5, 3),
    ),
    "normuon-nesterov": (
        scale_by_normuon(),
        transposed(lambda grads: oracle.normuon(grads, nesterov=True)),
        (3, 4),
    ),
    "shampoo": (
        scale_by_shampoo(every=EVERY),
        lambda grads: oracle.shampoo(grads, every=EVERY, sides="LR"),
        (4, 4),
    ),
    "shampoo-wide": (
        scale_by_shampoo(every=1),
        lambda grads: oracle.shampoo(grads, every=1, sides="LR"),
        (3, 5),
    ),
    "shampoo-one-sided": (
        scale_by_shampoo(every=EVERY, max_dim=3),
        lambda grads: oracle.shampoo(grads, every=EVERY, sides="R"),
        (6, 3),
    ),
    "soap": (
        scale_by_soap(every=EVERY),
        lambda grads: oracle.soap(grads, every=EVERY, sides="LR"),
        (4, 4),
    ),
    # of a matrix that is not square, one basis of the first gradient's null space is as good as another:
    # both sides have a common answer only where they are square
    "soap-one-sided": (
        scale_by_soap(every=EVERY, max_dim=3),
        lambda grads: oracle.soap(grads, every=EVERY, sides="L"),
        (3, 6),
    ),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_baseline_matches_its_paper(name: str, dtype: Any) -> None:
    tx, expected_steps, shape = CASES[name]
    grads = make_grads(*shape)
    limit = tolerance(f"baselines {np.dtype(dtype).name}, oracle")
    for t, (actual, expected) in enumerate(zip(replay(tx, grads, dtype), expected_steps(grads), strict=True)):
        assert relative_error(actual, expected) <= limit, f"step {t}"


@pytest.mark.parametrize("make", [scale_by_adamuon, scale_by_normuon, scale_by_shampoo, scale_by_soap])
def test_convolution_is_one_matrix_and_other_ranks_are_stacks(make: Callable[..., Any]) -> None:
    rng = np.random.default_rng(3)
    kernels = [jnp.asarray(rng.standard_normal((2, 1, 2, 3)), jnp.float32) for _ in range(3)]
    stacks = [jnp.asarray(rng.standard_normal((2, 4, 3)), jnp.float32) for _ in range(3)]
    trees = [
        {"conv": conv, "flat": conv.reshape(4, 3), "stack": stack, "second": stack[1]}
        for conv, stack in zip(kernels, stacks, strict=True)
    ]
    tx, updates = make(), {}
    state, update = tx.init(trees[0]), jax.jit(tx.update)
    for tree in trees:
        updates, state = update(tree, state)
    np.testing.assert_allclose(updates["conv"].reshape(4, 3), updates["flat"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(updates["stack"][1], updates["second"], rtol=1e-4, atol=1e-6)
    assert np.any(updates["flat"])


@pytest.mark.parametrize("make", [scale_by_shampoo, scale_by_soap])
def test_step_from_outside_a_vmap_spares_decompositions_and_changes_nothing(make: Callable[..., Any]) -> None:
    tx = make(every=EVERY)
    grads = jnp.asarray([make_grads(4, 4), make_grads(4, 4)[::-1]], jnp.float32)  # two runs
    states = jax.vmap(lambda grads: tx.init(grads[0]))(grads)

    def train(state: Any, grads: jax.Array, told: bool) -> jax.Array:
        def body(count: jax.Array, carry: Any) -> Any:
            state, _ = carry
            updates, state = tx.update(grads[count], state, **({"step": count} if told else {}))
            return state, updates

        return jax.lax.fori_loop(0, STEPS, body, (state, jnp.zeros((4, 4))))[1]

    def run(told: bool) -> tuple[np.ndarray, str]:
        program = jax.jit(jax.vmap(lambda state, grads: train(state, grads, told)))
        return np.asarray(program(states, grads)), program.lower(states, grads).compile().as_text() or ""

    (told, conditional), (untold, unconditional) = run(True), run(False)
    np.testing.assert_allclose(told, untold, rtol=1e-3, atol=1e-5)
    assert " conditional(" in conditional
    assert " conditional(" not in unconditional
