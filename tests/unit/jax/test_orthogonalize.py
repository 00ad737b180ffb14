"""Newton–Schulz: exact enough in bfloat16, and that only where it is faster."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2.config import RuleConfig
from celo2.jax import orthogonalize

LEAST, LARGEST = 0.6, 1.3  # of the singular values: 0.68 to 1.14 in float32, 0.65 to 1.16 in bfloat16
CONFIG = RuleConfig()


def make_matrices(shape: tuple[int, ...]) -> jax.Array:
    """Singular values from 1 down to 0.05, in float32."""
    rng = np.random.default_rng(0)
    size = min(shape[-2:])
    left, _ = np.linalg.qr(rng.standard_normal((*shape[:-1], size)))
    right, _ = np.linalg.qr(rng.standard_normal((*shape[:-2], shape[-1], size)))
    return jnp.asarray((left * np.geomspace(1, 0.05, size)) @ right.swapaxes(-1, -2), jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (2, 32, 32)], ids=str)
def test_singular_values_end_near_one(shape: tuple[int, ...], dtype: str) -> None:
    result = orthogonalize.iterate(make_matrices(shape), CONFIG, jnp.dtype(dtype))
    assert (result.shape, result.dtype) == (shape, jnp.float32)
    values = np.linalg.svd(np.asarray(result), compute_uv=False)
    assert values.min() > LEAST
    assert values.max() < LARGEST


def test_bfloat16_gives_nearly_the_same_matrix() -> None:
    matrices = make_matrices((32, 48))
    exact, fast = (
        orthogonalize.iterate(matrices, CONFIG, jnp.dtype(dtype)) for dtype in ("float32", "bfloat16")
    )
    cosine = jnp.vdot(exact, fast) / jnp.linalg.norm(exact) / jnp.linalg.norm(fast)
    assert cosine > 0.995  # 0.9988


def test_dtype_of_the_products_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU: bfloat16 there, float32 for what runs on its CPU; float64 stays."""
    matrices = make_matrices((8, 8))

    def lowered(platform: str) -> str:
        traced = jax.jit(lambda x: orthogonalize.compute(x, CONFIG)).trace(matrices)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "bf16" not in lowered("cuda")  # traced where the CPU is all there is
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "bf16" in lowered("cuda")
    assert "bf16" not in lowered("cpu")
    with jax.enable_x64(True):
        matrices = matrices.astype(jnp.float64)
        assert "bf16" not in lowered("cuda")


PLAIN, GRAM = 15, 18  # products: the plain form's are m x m x n but for one of three, four of the Gram form's


def test_gram_form_is_for_cpus_and_whole_float32_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = make_matrices((128, 256))

    def count_products(matrices: jax.Array, platform: str) -> int:
        traced = jax.jit(lambda x: orthogonalize.compute(x, CONFIG)).trace(matrices)
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.dot_general")

    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert count_products(matrices, "cpu") == GRAM
    assert count_products(matrices.T, "cpu") == GRAM
    assert count_products(matrices[:, :255], "cpu") == PLAIN
    assert count_products(matrices.astype(jnp.bfloat16), "cpu") == PLAIN
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert count_products(matrices, "cpu") == PLAIN  # it may be sharded
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert count_products(matrices, "cuda") == PLAIN
    assert count_products(matrices, "cpu") == GRAM
