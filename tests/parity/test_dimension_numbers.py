"""With dimension numbers, the step depends on the layer and not on how its kernel is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.typing import NDArray

import celo2
from celo2 import DimensionNumbers
from helpers.tolerances import relative_error, tolerance
from oracle import rule

Array = NDArray[np.floating]

FEATURES = ("with_g", "with_fac_norm_g", "with_fac_rms")  # enough to tell every axis apart
CONFIG: dict[str, Any] = {
    **{name: name in FEATURES for name in celo2.RuleConfig.option_names() if name.startswith("with_")},
    "ff_hidden_size": 2,
    "ff_hidden_layers": 1,
    "initial_momentum_decays": [0.9],
    "initial_adafactor_decays": [0.9],
    "ns_iters": 2,
}
OPTIONS = rule.make_options(CONFIG)


class Layout(NamedTuple):
    """A way to store matrices, and where in the stored array each `(reduction, output)` matrix is."""

    shape: tuple[int, ...]
    numbers: Any
    matrices: Callable[[Array], list[Array]]


LAYOUTS = {
    "matrix": Layout((5, 5), DimensionNumbers(0, 1), lambda x: [x]),
    "transposed matrix": Layout((5, 5), DimensionNumbers(1, 0), lambda x: [x.T]),
    "optax's name": Layout((5, 5), optax.contrib.MuonDimensionNumbers(1, 0), lambda x: [x.T]),
    "negative axes": Layout((5, 5), DimensionNumbers(-1, -2), lambda x: [x.T]),
    "conv HWIO": Layout((3, 2, 2, 4), DimensionNumbers((0, 1, 2), 3), lambda x: [x.reshape(12, 4)]),
    "conv OIHW": Layout(
        (4, 2, 3, 2), DimensionNumbers((2, 3, 1), 0), lambda x: [x.transpose(2, 3, 1, 0).reshape(12, 4)]
    ),
    "stack": Layout((3, 4, 5), DimensionNumbers(1, 2), list),
    "heads apart": Layout((6, 2, 3), DimensionNumbers(0, 2), lambda x: [x[:, 0], x[:, 1]]),
    "heads together": Layout((6, 2, 3), DimensionNumbers(0, (1, 2)), lambda x: [x.reshape(6, 6)]),
    "output projection": Layout((2, 3, 6), DimensionNumbers((0, 1), 2), lambda x: [x.reshape(6, 6)]),
    "fused QKV": Layout((4, 12), DimensionNumbers(0, 1, 3), lambda x: np.split(x, 3, axis=1)),
    "fused QKV, output first": Layout(
        (12, 4), DimensionNumbers(1, 0, 3), lambda x: [y.T for y in np.split(x, 3)]
    ),
    "stack of fused QKV": Layout(
        (2, 4, 12), DimensionNumbers(1, 2, 3), lambda x: [y for z in x for y in np.split(z, 3, axis=1)]
    ),
}


def make_theta() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in rule.weight_shapes(OPTIONS).items()}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_step_is_that_of_the_layers_matrices(layout: Layout) -> None:
    theta, rng = make_theta(), np.random.default_rng(1)
    with jax.enable_x64(True):  # exactness of the axes is the point, not rounding
        param = rng.standard_normal(layout.shape)
        tx = celo2.scale_by_celo2(theta, dimension_numbers={"w": layout.numbers}, **CONFIG)
        update = jax.jit(tx.update)
        state = tx.init({"w": jnp.asarray(param)})
        states = [rule.init(matrix.shape, OPTIONS) for matrix in layout.matrices(param)]
        for _ in range(2):
            grad = rng.standard_normal(layout.shape)
            step, state = update({"w": jnp.asarray(grad)}, state, {"w": jnp.asarray(param)})
            for index, (actual, g, p) in enumerate(
                zip(*map(layout.matrices, (np.asarray(step["w"]), grad, param)), strict=True)
            ):
                expected, states[index] = rule.update(theta, states[index], g, p, OPTIONS)
                assert relative_error(actual, expected) <= tolerance("jax float64, oracle"), index


def test_accumulators_keep_the_stored_shape() -> None:
    tx = celo2.scale_by_celo2(make_theta(), dimension_numbers={"w": DimensionNumbers((2, 3, 1), 0)}, **CONFIG)
    state: Any = tx.init({"w": jnp.zeros((4, 2, 3, 2))})
    assert {tree["w"].shape for tree in (*state.momentum, *state.rms)} == {(4, 2, 3, 2)}


def test_storage_matters_without_dimension_numbers() -> None:
    """The reference's convention, and the reason for the numbers: a square matrix swaps row and column."""
    theta, rng = make_theta(), np.random.default_rng(2)
    tx = celo2.scale_by_celo2(theta, **CONFIG)
    param, grad = (jnp.asarray(rng.standard_normal((5, 5)), jnp.float32) for _ in range(2))
    update = jax.jit(tx.update)
    step, _ = update(grad, tx.init(param), param)
    transposed, _ = update(grad.T, tx.init(param.T), param.T)
    assert relative_error(transposed.T, step) > 0.01


def test_dimension_numbers_may_be_a_callable() -> None:
    theta, rng = make_theta(), np.random.default_rng(3)
    params = {"w": jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)}

    def numbers(tree: Any) -> Any:
        return jax.tree.map(lambda _: DimensionNumbers(1, 0), tree)

    steps = [
        jax.jit(tx.update)(params, tx.init(params), params)[0]["w"]
        for tx in (
            celo2.scale_by_celo2(theta, dimension_numbers=numbers, **CONFIG),
            celo2.scale_by_celo2(theta, dimension_numbers=numbers(params), **CONFIG),
        )
    ]
    np.testing.assert_array_equal(*steps)
