"""Where a traced program will run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

__all__ = ["find_explicit_mesh", "inside_shard_map", "leave_shardings_to_compiler", "on_one_device"]


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


def find_explicit_mesh(tree: Any) -> Any:
    """The mesh with explicit axes on which arrays lie or which is in force (`jax.set_mesh`), None without."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree)]
    for mesh in (*meshes, jax.sharding.get_abstract_mesh()):
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def leave_shardings_to_compiler(function: Callable[..., Any], like: Any, *arguments: Any) -> Any:
    """Calls a function whose intermediate shardings no type has to say, whatever the mesh's axes are.

    Where axes are explicit (`jax.make_mesh`'s default), JAX refuses products and reshapes of sharded arrays
    that do not say how the result lies. The rule leaves that to the compiler, as on automatic axes.

    Args:
        function: From trees of arrays to a tree of arrays.
        like: A tree of arrays that are sharded as the results should be.
        *arguments: Its arguments.
    """
    mesh = find_explicit_mesh((like, arguments))
    if mesh is None:
        return function(*arguments)
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf)), like)
    axes = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    )
    return jax.sharding.auto_axes(function, axes=axes, out_sharding=shardings)(*arguments)


def _spec(leaf: Any) -> PartitionSpec:
    sharding = jax.typeof(leaf).sharding
    return PartitionSpec(*[None] * leaf.ndim) if sharding.mesh.empty else sharding.spec
