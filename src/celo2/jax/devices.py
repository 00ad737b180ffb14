"""Where a traced program will run."""

from __future__ import annotations

import jax
from jax.sharding import AxisType

__all__ = ["inside_shard_map", "on_one_device"]


def on_one_device() -> bool:
    """Whether the arrays that are traced now lie on one device each.

    That is so where there is one device, and inside `jax.shard_map`, whose devices compute each by
    itself. Elsewhere an array may be sharded, which is not known while it is traced: a stack of
    arrays, or a kernel, could change its sharding or gather it.
    """
    return jax.device_count() == 1 or inside_shard_map()


def inside_shard_map() -> bool:
    """Whether what is traced now runs on each device of a mesh by itself, along all of its axes."""
    axis_types = jax.sharding.get_abstract_mesh().axis_types
    return bool(axis_types) and all(kind == AxisType.Manual for kind in axis_types)
