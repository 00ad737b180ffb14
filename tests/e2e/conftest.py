"""What the tests of whole commands share."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

from helpers import quick


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Processes of a module share what they compile, quickly."""
    return quick.environment(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def promotion_of_a_users_program() -> Iterator[None]:
    """What users write is written for JAX's defaults, not for those of the tests."""
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
