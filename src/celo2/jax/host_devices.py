"""The processor as several JAX devices, so that independent runs share its cores."""

from __future__ import annotations

import os

import jax

__all__ = ["num_cores", "use_cpu_devices"]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cpu_devices(count: int) -> None:
    """Makes JAX see the processor as `count` devices, unless it runs or the user has said how many.

    XLA gets twice as many threads as devices: each device keeps one waiting while LAPACK decomposes matrices
    (Shampoo, SOAP), and LAPACK needs one that is free, or all wait for ever.
    """
    os.environ.setdefault("NPROC", str(2 * count))  # what XLA takes for the number of cores
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return  # JAX refuses to be told twice
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return  # JAX is running, with the devices it has
