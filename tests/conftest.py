"""Shared test set-up: strict numerics, and the reference runs where they exist."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference runs beside the checkout; a user's checkout has none."""
    folder = ROOT.parent / "shared"
    if not folder.exists():
        pytest.skip("the reference runs (../shared) are not part of this checkout")
    return folder
