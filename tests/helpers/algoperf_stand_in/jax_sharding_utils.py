"""The two shardings that JAX submissions ask for, over all devices."""

from __future__ import annotations

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def _mesh() -> Mesh:
    return Mesh(jax.devices(), ("batch",))


def get_replicate_sharding() -> NamedSharding:
    """The same array on each device."""
    return NamedSharding(_mesh(), PartitionSpec())


def get_batch_dim_sharding() -> NamedSharding:
    """An equal part of the first axis on each device."""
    return NamedSharding(_mesh(), PartitionSpec("batch"))
