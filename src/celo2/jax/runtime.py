"""Compiler options, device and sharding queries, and CPU devices for programs that use the rule."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# Unless sums may be reordered, the processor adds one number at a time where a vector register holds sixteen.
# NaN and infinity keep their meaning.
_CPU = {
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
    "xla_cpu_prefer_vector_width": "512",  # bits
}
# By default XLA runs a step breadth-first, for parallelism: one pass over all matrices, then the next, for
# which the arrays have left the cache. Older versions of XLA have a switch instead of a choice.
_DEPTH_FIRST: tuple[dict[str, bool | str], ...] = (
    {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
    {"xla_cpu_enable_concurrency_optimized_scheduler": False},
)


def compiler_options(platform: str | None = None) -> dict[str, bool | str] | None:
    """Returns XLA's options for a program that trains with the rule.

    Usage: `jax.jit(train_step, compiler_options=celo2.compiler_options())`. On a CPU, XLA may
    then add the numbers of a sum in any order, which lets vector registers sum the squares by which each
    channel of the rule is normalised. Results differ from those of the default order by rounding; NaN
    and infinity keep their meaning, division and functions their precision. XLA also finishes one array
    before it begins the next, which needs less memory and keeps the array in the cache.

    Args:
        platform: JAX's name for the platform that runs the program, such as "cpu" or "gpu"; None: the
            default backend.

    Returns:
        The options; None where the compiler's defaults are best, that is, everywhere but on a CPU.
    """
    return _CPU | _find_depth_first() if (platform or jax.default_backend()) == "cpu" else None


@functools.cache
def _find_depth_first() -> dict[str, bool | str]:
    """Returns the option that makes the installed XLA run a program depth-first, by compiling with each."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        identity = jax.jit(lambda x: x).lower(0.0)
    for option in _DEPTH_FIRST:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # an unknown option
            identity.compile(option)
            return option
    return {}


def on_one_device() -> bool:
    """Returns whether the arrays traced now are known to lie on one device each.

    This holds if there is one device, and inside `jax.shard_map`, where each device computes separately.
    Elsewhere an array may be sharded, which is unknown during tracing: stacking arrays, or a kernel,
    could change its sharding or gather it.
    """
    return jax.device_count() == 1 or inside_shard_map()


def inside_shard_map() -> bool:
    """Returns whether the code traced now is inside a `jax.shard_map` that is manual along all mesh axes."""
    axis_types = jax.sharding.get_abstract_mesh().axis_types
    return bool(axis_types) and all(kind == AxisType.Manual for kind in axis_types)


def find_explicit_mesh(tree: Any) -> Any:
    """Returns the mesh with explicit axes of the arrays or of `jax.set_mesh`, or None."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree)]
    for mesh in (*meshes, jax.sharding.get_abstract_mesh()):
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def leave_shardings_to_compiler(function: Callable[..., Any], like: Any, *arguments: Any) -> Any:
    """Calls a function and leaves its intermediate shardings to the compiler, whatever the mesh's axes.

    With explicit axes (`jax.make_mesh`'s default), JAX rejects products and reshapes of sharded arrays
    without a given output sharding. The rule leaves this to the compiler, as with automatic axes.

    Args:
        function: A function from trees of arrays to a tree of arrays.
        like: A tree of arrays with the shardings that the results should have.
        *arguments: The arguments of the function.
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


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cpu_devices(count: int) -> None:
    """Makes JAX use the CPU as `count` devices, unless JAX is running or the user has set a number.

    XLA gets twice as many threads as devices: each device blocks one while LAPACK decomposes matrices
    (Shampoo, SOAP), and LAPACK needs a free one, or everything deadlocks.
    """
    os.environ.setdefault("NPROC", str(2 * count))  # read by XLA as the number of cores
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return  # JAX rejects a second setting
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return  # JAX is already running with its devices
