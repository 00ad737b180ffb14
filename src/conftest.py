"""Doctests run as a user's code does: with JAX's usual type promotion, which tests/conftest.py forbids."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def usual_promotion() -> Iterator[None]:
    """Optax's own code does not obey strict promotion, nor does that of most users."""
    settings = ("jax_numpy_dtype_promotion", "standard"), ("jax_numpy_rank_promotion", "allow")
    before = [(name, getattr(jax.config, name)) for name, _ in settings]
    for name, value in settings:
        jax.config.update(name, value)
    yield
    for name, value in before:
        jax.config.update(name, value)
