"""Chooses the implementation for each array: the plain program, or three passes by XLA or by GPU kernels.

By default, CUDA devices use the kernels of `pallas/kernels.py` where they apply, other matrices use XLA's
passes (`three_pass.py`), and vectors and rare options use the plain program (`step.py`). The choice is made
while an update is traced. It is not an option of the rule, so it is neither in `RuleConfig` nor in the
transforms' signatures; benchmarks and tests set it with `use`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2._utils.user_warnings import warn
from celo2.config import RuleConfig
from celo2.jax import accumulators as accumulators_lib
from celo2.jax import mlp, three_pass
from celo2.jax.accumulators import Accumulators, Leaf
from celo2.jax.dimensions import Axes
from celo2.jax.runtime import inside_shard_map

Implementation = Literal["auto", "plain", "matmul", "xla", "pallas", "pallas_interpret"]

# Arrays that the GPU kernels support. These limits have not been measured on a GPU: `benchmarks/gpu.py`
# compares XLA's passes with the kernels on one matrix, of the size `MATRIX` there.
LEAST_SIZE = 1 << 16  # elements; a smaller array is not worth three kernels and the work between them
LEAST_SIDE = 32  # of a matrix; narrower ones leave most of each block empty
LARGEST_HIDDEN = 16  # units of a layer, which all stay in registers
LARGEST_DEPTH = 4  # hidden layers, unrolled
GRAD_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

_chosen: ContextVar[Implementation] = ContextVar("implementation", default="auto")


@contextlib.contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Selects the implementation for updates traced inside the block; compiled updates do not change.

    Args:
        implementation: `"auto"`; `"plain"`, one array at a time as in the paper; `"matmul"`, the
            same with `mlp.compute_by_matmul`, for derivatives with respect to the weights; `"xla"`,
            passes without kernels; `"pallas"`, the kernels wherever they apply, for any size and any
            number of devices; `"pallas_interpret"`, the same kernels as ordinary JAX operations, which
            run on every backend.
    """
    if implementation not in get_args(Implementation):
        names = ", ".join(map(repr, get_args(Implementation)))
        raise ValueError(f"implementation must be one of {names}, got {implementation!r}.")
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)


def choose(
    weights: Mapping[str, Any], grad: Array, accumulators: Accumulators, axes: Axes | None, config: RuleConfig
) -> Implementation:
    """Returns the implementation for this array: `"auto"` means kernels on CUDA and XLA's passes elsewhere.

    Without `use`, kernels are chosen only if JAX has exactly one device, a GPU: the compiler cannot split a
    kernel across devices and would gather the matrix first, and `jax.shard_map` rejects kernels
    that do not declare along which axes their results vary.
    """
    chosen = _chosen.get()
    if chosen in ("plain", "matmul") or not three_pass.covers(grad.ndim, axes, config):
        return "plain"
    if chosen == "xla" or not fits(weights, grad, accumulators, config):
        return "xla"
    if chosen != "auto":
        return chosen
    if jax.default_backend() != "gpu" or jax.device_count() > 1 or inside_shard_map():
        return "xla"
    if grad.size < LEAST_SIZE:
        return "xla"
    return "auto" if _can_lower(config) else "xla"


def choose_network() -> Callable[..., tuple[Array, Array | None]]:
    """Returns the plain program's network: `mlp.compute`, or `mlp.compute_by_matmul`."""
    return mlp.compute_by_matmul if _chosen.get() == "matmul" else mlp.compute


def fits(weights: Mapping[str, Any], grad: Array, accumulators: Accumulators, config: RuleConfig) -> bool:
    """Returns whether the kernels support this array.

    They need concrete weights (constants of the kernel), a small network, matrices with both sides at least
    `LEAST_SIDE`, and float32 accumulators.
    """
    return (
        all(isinstance(array, np.ndarray) for array in weights.values())
        and config.ff_hidden_size <= LARGEST_HIDDEN
        and config.ff_hidden_layers <= LARGEST_DEPTH
        and min(grad.shape[-2:]) >= LEAST_SIDE
        and grad.dtype in GRAD_DTYPES
        and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(accumulators))
    )


def run(chosen: Implementation, xla: Callable[..., Any], kernels: Callable[..., Any], *arguments: Any) -> Any:
    """Calls one of two equivalent functions, or leaves the choice to the platform.

    Args:
        chosen: A result of `choose` other than "plain".
        xla: Computes with XLA's passes.
        kernels: Computes with the kernels; its last argument is whether to interpret them. Its
            derivative is that of `xla`.
        *arguments: Trees of arrays.
    """
    if chosen == "xla":
        return xla(*arguments)
    interpret = chosen == "pallas_interpret"
    fast = jax.custom_jvp(lambda *arrays: kernels(*arrays, interpret))
    fast.defjvp(lambda primals, tangents: jax.jvp(xla, primals, tangents))
    if chosen == "auto":
        return jax.lax.platform_dependent(*arguments, cuda=fast, default=xla)
    return fast(*arguments)


@functools.cache
def _can_lower(config: RuleConfig) -> bool:
    """Returns whether the installed JAX can lower the kernels for these options, by trying a small matrix."""
    shape, axes = (LEAST_SIDE, LEAST_SIDE), Axes(0, 1)
    weights = {name: np.zeros(size, np.float32) for name, size in config.weight_shapes().items()}
    try:
        from celo2.jax.pallas import kernels as pallas

        array = jax.ShapeDtypeStruct(shape, jnp.float32)
        state = jax.eval_shape(lambda: accumulators_lib.init(shape, axes, config, jnp.dtype("float32")))

        def compute(*matrix: Any) -> Any:
            kernels = pallas.make_passes(weights, config)
            return three_pass.compute(weights, [Leaf(*matrix)], kernels, axes=axes, config=config)

        jax.jit(compute).trace(array, array, state).lower(lowering_platforms=("cuda",))
    except Exception as error:  # of any kind: XLA's passes still work
        warn(f"the GPU kernels are not used, since they cannot be lowered: {error!r}")
        return False
    return True
