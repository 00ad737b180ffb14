"""Parts of parameter trees as Flax stores them, as shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = tuple[Callable[[], Any], dict[str, str]]


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def dense(*sizes: int, bias: bool = True) -> dict[str, Any]:
    """A layer of Flax: its kernel, and the bias of its outputs."""
    return {"kernel": shape(*sizes)} | ({"bias": shape(sizes[-1])} if bias else {})


def norm(*sizes: int) -> dict[str, Any]:
    return {"scale": shape(*sizes)}
