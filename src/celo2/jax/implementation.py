"""Which program computes an array's direction: the plain one, or the GPU kernels of `pallas.py`.

Nobody has to choose: the kernels serve CUDA devices where they apply, the plain program everything
else. The choice is made while an update is traced and is no option of the rule, so it is neither in
`RuleConfig` nor in the transforms' signatures; benchmarks and tests make it with `use`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.config import RuleConfig
from celo2.jax.accumulators import Accumulators
from celo2.jax.dimensions import Axes

__all__ = ["LEAST_SIDE", "LEAST_SIZE", "Implementation", "choose", "fits", "run", "use"]

Implementation = Literal["auto", "xla", "pallas", "pallas_interpret"]

LEAST_SIZE = 1 << 16  # elements; a smaller array is not worth three kernels and what lies between them
LEAST_SIDE = 32  # of a matrix; a narrower one would leave most of each block empty
LARGEST_HIDDEN = 16  # units of a layer, which all stay in registers
LARGEST_DEPTH = 4  # hidden layers, unrolled
GRAD_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

_chosen: ContextVar[Implementation] = ContextVar("implementation", default="auto")


@contextlib.contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Chooses the implementation of every update that is traced inside; compiled ones stay as they are.

    Args:
        implementation: `"auto"`; `"xla"`, the plain program; `"pallas"`, the kernels wherever they
            apply, of any size and on any number of devices; `"pallas_interpret"`, the same as
            ordinary JAX operations, which run on every backend.
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
    """How to compute this array: `"auto"` stands for the kernels on CUDA and the plain program elsewhere.

    By itself it takes the kernels only where JAX has a GPU, and one device: the compiler cannot
    divide a kernel between devices and would gather the matrix first.
    """
    chosen = _chosen.get()
    if chosen == "xla" or not fits(weights, grad, accumulators, axes, config):
        return "xla"
    if chosen != "auto":
        return chosen
    if jax.default_backend() != "gpu" or jax.device_count() > 1 or grad.size < LEAST_SIZE:
        return "xla"
    return "auto" if _can_lower(config) else "xla"


def fits(
    weights: Mapping[str, Any], grad: Array, accumulators: Accumulators, axes: Axes | None, config: RuleConfig
) -> bool:
    """Whether the kernels cover this array and these options.

    They need finished weights (constants of the kernel), matrices on the last two axes with both
    sides at least `LEAST_SIDE`, float32 accumulators, and the default way of normalising: no bias
    correction, no magnitudes.
    """
    options = (
        config.normalize_input
        and not config.bias_correction
        and config.exp_mult == 0
        and config.ff_hidden_size <= LARGEST_HIDDEN
        and config.ff_hidden_layers <= LARGEST_DEPTH
    )
    finished = all(isinstance(array, np.ndarray) for array in weights.values())
    if not options or not finished or axes is None:
        return False
    return (
        min(axes) == grad.ndim - 2
        and min(grad.shape[-2:]) >= LEAST_SIDE
        and grad.dtype in GRAD_DTYPES
        and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(accumulators))
    )


def run(
    chosen: Implementation, plain: Callable[..., Any], kernels: Callable[..., Any], *arguments: Any
) -> Any:
    """Calls one of two functions of the same meaning, or leaves the choice to the platform.

    Args:
        chosen: Of `choose`.
        plain: The plain program.
        kernels: The same with kernels; its last argument says whether to interpret them. It is
            differentiated as the plain program is.
        *arguments: Trees of arrays.
    """
    if chosen == "xla":
        return plain(*arguments)
    interpret = chosen == "pallas_interpret"
    fast = jax.custom_jvp(lambda *arrays: kernels(*arrays, interpret))
    fast.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    if chosen == "auto":
        return jax.lax.platform_dependent(*arguments, cuda=fast, default=plain)
    return fast(*arguments)


@functools.cache
def _can_lower(config: RuleConfig) -> bool:
    """Whether the installed JAX can lower the kernels for these options, tried on a small matrix."""
    from celo2.jax import accumulators as accumulators_lib
    from celo2.jax.dimensions import make_axes

    shape = (LEAST_SIDE, LEAST_SIDE)
    axes = make_axes(shape)
    assert axes is not None
    weights = {name: np.zeros(size, np.float32) for name, size in config.weight_shapes().items()}
    try:
        from celo2.jax import pallas

        array = jax.ShapeDtypeStruct(shape, jnp.float32)
        state = jax.eval_shape(lambda: accumulators_lib.init(shape, axes, config, jnp.dtype("float32")))
        compute = functools.partial(pallas.compute, weights, axes=axes, config=config)
        jax.jit(compute).trace(array, array, state).lower(lowering_platforms=("cuda",))
    except Exception as error:  # whatever it is, the plain program still works
        warnings.warn(f"the GPU kernels are not used, since they cannot be lowered: {error!r}", stacklevel=2)
        return False
    return True
