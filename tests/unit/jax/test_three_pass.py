"""Matrices of one shape in three passes, against the plain program one by one."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.config import RuleConfig
from celo2.jax import accumulators, dispatch, orthogonalize, step
from celo2.jax.accumulators import Leaf
from celo2.jax.dimensions import make_axes
from helpers.tolerances import relative_error

TOLERANCE = 3e-6  # sums in another order, in float32 (2.0e-6)
EXACT = 1e-14  # in float64 (3.8e-16)
SMALL: dict[str, Any] = {
    "ff_hidden_size": 2,
    "initial_momentum_decays": (0.9,),
    "initial_adafactor_decays": (0.9,),
}  # compiles faster
BASE = RuleConfig(orthogonalize=False, **SMALL)


def make_weights(config: RuleConfig, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: (0.3 * rng.standard_normal(shape)).astype(dtype)
        for name, shape in config.weight_shapes().items()
    }


def make_leaves(shape: tuple[int, ...], config: RuleConfig, dtype: Any, number: int = 3) -> list[Leaf]:
    """Different ones, in the middle of a run; gradients that the clip changes."""
    rng = np.random.default_rng(1)
    zeros = accumulators.init(shape, make_axes(shape), config, jnp.dtype(dtype))

    def random(scale: float) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), dtype)

    def state() -> Any:
        return jax.tree.map(lambda x: jnp.asarray(1e-2 * rng.random(x.shape), dtype), zeros)

    return [Leaf(random(800.0 if not i else 0.1), random(1.0), state()) for i in range(number)]


def update(name: Any, leaves: list[Leaf], config: RuleConfig, weights: Any) -> Any:
    with dispatch.use(name):
        axes = make_axes(leaves[0].grad.shape)
        compute = partial(step.update_all, weights, count=jnp.int32(3), axes=axes, config=config)
        return jax.jit(compute, compiler_options={"xla_backend_optimization_level": 0})(leaves)


def largest_error(actual: Any, expected: Any) -> float:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    assert all((a.shape, a.dtype) == (e.shape, e.dtype) for a, e in pairs)
    return max(relative_error(a, e) for a, e in pairs)


CASES = {
    "wide": ((24, 40), BASE),
    "tall": ((40, 24), BASE),
    "square": ((16, 16), BASE),
    "batched": ((2, 3, 8, 12), BASE),
    "Newton–Schulz": ((24, 40), BASE.replace(orthogonalize=True)),
    "no vectors": ((24, 40), BASE.replace(with_fac_rms=False, with_fac_rsqrt=False)),
    "all else": (
        (24, 40),
        BASE.replace(
            orthogonalize=True,
            param_scale_mult=True,
            precondition_output=True,
            rmsmult=0.5,
            mlp_activation="tanh",
        ),
    ),
    "output as it is": ((24, 40), BASE.replace(normalize_output=False)),
}


@pytest.mark.parametrize(("shape", "config"), CASES.values(), ids=CASES.keys())
def test_passes_equal_the_plain_program(shape: tuple[int, ...], config: RuleConfig) -> None:
    leaves, weights = make_leaves(shape, config, np.float32), make_weights(config)
    error = largest_error(update("xla", leaves, config, weights), update("plain", leaves, config, weights))
    assert error <= TOLERANCE


def test_passes_equal_the_plain_program_in_float64() -> None:
    with jax.enable_x64(True):
        leaves, weights = make_leaves((24, 40), BASE, np.float64), make_weights(BASE, np.float64)
        error = largest_error(update("xla", leaves, BASE, weights), update("plain", leaves, BASE, weights))
    assert error <= EXACT


def test_passes_with_learned_weights() -> None:
    """Arrays, as in meta-training, and numbers give the same."""
    leaves, weights = make_leaves((24, 40), BASE, np.float32), make_weights(BASE)
    traced = update("xla", leaves, BASE, jax.tree.map(jnp.asarray, weights))
    assert largest_error(traced, update("xla", leaves, BASE, weights)) <= TOLERANCE


def test_one_matrix_does_not_depend_on_the_others() -> None:
    leaves, weights = make_leaves((24, 40), BASE, np.float32), make_weights(BASE)
    leaves[1] = leaves[1]._replace(grad=jnp.full((24, 40), jnp.nan))
    found = update("xla", leaves, BASE, weights)
    expected = [update("xla", [leaf], BASE, weights)[0] for leaf in leaves]
    assert np.isnan(found[1][0]).all()
    assert largest_error([found[0], found[2]], [expected[0], expected[2]]) <= TOLERANCE


def test_a_deep_network_is_traced_once() -> None:
    """The program that is handed to the compiler does not grow with the number of equal matrices."""

    def count(depth: int) -> int:
        leaves, weights = make_leaves((24, 40), BASE, np.float32, depth), make_weights(BASE)
        compute = partial(step.update_all, weights, count=3, axes=make_axes((24, 40)), config=BASE)
        return jax.jit(compute).lower(leaves).as_text().count("stablehlo.dot_general")

    assert count(4) == count(1) > 0


def test_eager_steps_compile_nothing_anew(caplog: pytest.LogCaptureFixture) -> None:
    leaves, weights = make_leaves((24, 40), BASE, np.float32), make_weights(BASE)
    compute = partial(step.update_all, weights, count=3, axes=make_axes((24, 40)), config=BASE)
    compute(leaves)
    with jax.log_compiles():
        compute(leaves)
    assert "Compiling" not in caplog.text
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(leaves[0].grad)
    assert "Compiling" in caplog.text


def test_newton_schulz_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more matrices in a batch than the limit allows, and each gets what it gets alone."""
    config = BASE.replace(orthogonalize=True)
    rng = np.random.default_rng(0)
    matrices = [jnp.asarray(rng.standard_normal((8, 12)), jnp.float32) for _ in range(5)]
    alone = orthogonalize.compute_all(matrices, config)
    seen = []

    def watch(batch: jax.Array, config: RuleConfig) -> jax.Array:
        seen.append(batch.shape)
        return orthogonalize.iterate(batch, config, batch.dtype)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(orthogonalize, "compute", watch)
    monkeypatch.setattr(orthogonalize, "BATCH_LIMIT", 2 * 96)
    batched = orthogonalize.compute_all(matrices, config)
    assert seen == [(2, 8, 12), (2, 8, 12), (1, 8, 12)]
    assert largest_error(batched, alone) <= TOLERANCE
    seen.clear()
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    orthogonalize.compute_all(matrices, config)
    assert seen == [(8, 12)] * 5
