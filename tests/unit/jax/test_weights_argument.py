"""The argument `weights` of the JAX optimizers: a path or a name does what loading it first does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import celo2
from celo2.weights.checkpoint import save_weights
from helpers.weights_examples import make_weights

pytestmark = pytest.mark.usefixtures("standard_promotion")

PARAMS = {"hidden": {"kernel": jnp.asarray([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]])}}


def _updates(tx: Any) -> Any:
    return jax.jit(lambda: tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0])()


@pytest.mark.parametrize("as_text", [False, True], ids=["path", "text"])
@pytest.mark.parametrize("make", [celo2.celo2, celo2.celo2_base], ids=["celo2", "celo2-base"])
def test_a_path_is_loaded(make: Any, as_text: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights(orthogonalize=make is celo2.celo2))
    given, loaded = make(0.1, weights=str(path) if as_text else path), celo2.load_checkpoint(path)
    assert jnp.array_equal(
        *(u["hidden"]["kernel"] for u in map(_updates, (given, make(0.1, weights=loaded))))
    )
    direct = [celo2.scale_by_celo2(one, orthogonalize=make is celo2.celo2) for one in (path, loaded)]
    assert jnp.array_equal(*(_updates(tx)["hidden"]["kernel"] for tx in direct))


def test_a_path_of_the_other_variant_is_refused_when_the_optimizer_is_made(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", make_weights(orthogonalize=False))
    with pytest.raises(ValueError, match="orthogonalize"):
        celo2.celo2(0.1, weights=tmp_path / "w.safetensors")


def test_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="a path or name of weights, a tree of arrays or None, got int"):
        celo2.scale_by_celo2(7)  # pyright: ignore[reportArgumentType]
