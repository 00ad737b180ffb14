"""Newton–Schulz in JAX and torch against float64: every form, spectrum and set of coefficients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from numpy.typing import NDArray

import celo2
from celo2 import RuleConfig, polar_express
from celo2.jax import orthogonalize as in_jax
from celo2.torch import Celo2, Celo2Base
from celo2.torch import orthogonalize as in_torch
from helpers.tolerances import relative_error, tolerance
from oracle import rule

Array = NDArray[Any]
ROWS, COLUMNS = 256, 768  # large enough for the Gram form and for halved symmetric products
RANKS = np.arange(ROWS)
SPECTRA = {
    "condition 1e2": np.geomspace(1, 1e-2, ROWS),
    "condition 1e6": np.geomspace(1, 1e-6, ROWS),
    "power law": 1 / (1.0 + RANKS),
    "steep power law": (1.0 + RANKS) ** -2,
    "rank 8": np.where(RANKS < 8, 1.0, 0.0),
    "rank 8 and little": np.where(RANKS < 8, 1.0, 1e-3),
    "one and some": np.where(RANKS < 1, 1.0, 3e-2),
}
COEFFICIENTS: dict[str, dict[str, Any]] = {
    "muon": {},
    "four of muon": {"ns_iters": 4},
    "polar express": {"ns_coeffs": polar_express(5)},
    "four of polar express": {"ns_coeffs": polar_express(4), "ns_iters": 4},
}


Run = Callable[..., Array]


def run_jax(matrices: Array, config: RuleConfig, *, gram: bool) -> Array:
    compute = jax.jit(lambda x: in_jax.iterate(x, config, x.dtype, gram=gram))
    return np.asarray(compute(jnp.asarray(matrices)), np.float64)


def run_torch(matrices: Array, config: RuleConfig, *, gram: bool) -> Array:
    x = torch.from_numpy(matrices)
    return in_torch.iterate(x, config, x.dtype, gram=gram).double().numpy()


BACKENDS: dict[str, Run] = {"jax": run_jax, "torch": run_torch}
both_backends = pytest.mark.parametrize("run", BACKENDS.values(), ids=BACKENDS)
all_coefficients = pytest.mark.parametrize("options", COEFFICIENTS.values(), ids=COEFFICIENTS)


def make_matrices() -> Array:
    """One matrix of each spectrum, in float64."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((ROWS, ROWS)))
    right, _ = np.linalg.qr(rng.standard_normal((COLUMNS, ROWS)))
    given = [(left * values) @ right.T for values in SPECTRA.values()]
    return np.stack([*given, rng.standard_normal((ROWS, COLUMNS)), np.zeros((ROWS, COLUMNS))])


def make_params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(4, 3))]


def spectral_errors(actual: Array, expected: Array) -> dict[str, float]:
    """The largest error of the image of a unit vector, for each matrix; the singular values end near 1."""
    errors = np.linalg.norm(actual - expected, ord=2, axis=(-2, -1))
    return dict(zip([*SPECTRA, "random", "zero"], errors, strict=True))


@both_backends
@all_coefficients
@pytest.mark.parametrize("gram", [False, True], ids=["plain", "gram"])
def test_float32_forms_are_within_one_tolerance(run: Run, options: dict[str, Any], gram: bool) -> None:
    """Both forms agree with the plain iteration in float64 within one tolerance, whatever the spectrum."""
    matrices = make_matrices().astype(np.float32)
    expected = rule.orthogonalize(matrices.astype(np.float64), rule.Options(**options))
    errors = spectral_errors(run(matrices, RuleConfig(**options), gram=gram), expected)
    limit = tolerance("newton-schulz float32, float64")
    assert all(error <= limit for error in errors.values()), errors
    assert errors["zero"] == 0


@both_backends
def test_gram_form_of_tall_matrices_in_float64(run: Run) -> None:
    matrices = np.swapaxes(make_matrices()[:2], -2, -1)
    expected = rule.orthogonalize(matrices, rule.Options())
    with jax.enable_x64(True):
        result = run(np.ascontiguousarray(matrices), RuleConfig(), gram=True)
    assert relative_error(result, expected) <= tolerance("jax float64, oracle")


@pytest.mark.parametrize("shape", [(256, 256), (257, 257), (300, 300)], ids=str)
def test_torch_halved_products_of_any_side(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal((2, *shape))
    result = run_torch(matrix, RuleConfig(), gram=False)
    expected = rule.orthogonalize(matrix, rule.Options())
    assert relative_error(result, expected) <= tolerance("torch float64, oracle")


@pytest.mark.usefixtures("standard_promotion")
@all_coefficients
def test_optimizers_take_the_coefficients(options: dict[str, Any]) -> None:
    """`celo2.celo2` and `Celo2` alike, and as the transform with the number of iterations spelt out."""
    rng = np.random.default_rng(0)
    weight, grad = rng.standard_normal((2, 24, 40)).astype(np.float32)
    coefficients = options.get("ns_coeffs", [RuleConfig().ns_coeffs] * options.get("ns_iters", 5))

    tx: Any = celo2.celo2(1.0, ns_coeffs=coefficients)
    direct: Any = celo2.scale_by_celo2(**options)
    params, grads = {"kernel": jnp.asarray(weight)}, {"kernel": jnp.asarray(grad)}
    updates, _ = tx.update(grads, tx.init(params), params)
    direction, _ = direct.update(grads, direct.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -direction["kernel"], rtol=1e-6)

    param = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    param.grad = torch.from_numpy(grad)
    Celo2([param], lr=1.0, ns_coeffs=coefficients, algorithm="celo2").step()
    change = param.detach().numpy() - weight
    assert relative_error(change, updates["kernel"]) <= tolerance("torch, reference, orthogonalized")


@pytest.mark.usefixtures("standard_promotion")
def test_coefficients_go_with_injected_hyperparameters() -> None:
    tx: Any = optax.inject_hyperparams(celo2.celo2)(learning_rate=1e-3, ns_coeffs=polar_express(4))
    params = {"kernel": jnp.ones((4, 3))}
    updates, _ = tx.update(params, tx.init(params), params)
    assert np.isfinite(updates["kernel"]).all()


def test_copies_of_the_torch_optimizer_keep_the_coefficients() -> None:
    optimizer = Celo2(make_params(), ns_coeffs=polar_express(4), algorithm="celo2")
    assert copy.deepcopy(optimizer)._network.config.ns_polynomials == polar_express(4)


def test_optimizers_refuse_wrong_coefficients() -> None:
    with pytest.raises(ValueError, match="ns_coeffs must be three coefficients"):
        celo2.celo2(1e-3, ns_coeffs=(1.0, 2.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ns_coeffs must be three coefficients"):
        Celo2(make_params(), ns_coeffs=(1.0, 2.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Celo2Base has no Newton–Schulz"):
        Celo2Base(make_params(), ns_coeffs=polar_express(4))
