"""Which program computes a tensor's direction: the plain one, or passes by compiled kernels or on blocks.

Nobody has to choose: kernels serve matrices on a CPU where Numba is installed and on a CUDA device where
Triton is, blocks other matrices on a CPU, the plain program (`step.py`) vectors and rare options. The
optimizer's `foreach` and `fused` switch kernels off and on; benchmarks and tests choose with `use`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from celo2.torch import blocks, kernel_inputs, passes
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Layout
from celo2.torch.features import Inputs
from celo2.torch.network import Network
from celo2.torch.passes import Passes

__all__ = ["LEAST_SIZE", "Implementation", "check_kernels", "choose", "make_passes", "use"]

Implementation = Literal["auto", "plain", "passes", "blocks", "numba", "triton"]

KERNELS: dict[str, Implementation] = {"cpu": "numba", "cuda": "triton"}  # by the device's type
LEAST_SIZE = 1 << 12  # elements; below it, stacking equal tensors in the plain program costs less
LEAST_GPU_SIZE = 1 << 16  # elements; a smaller one is not worth three kernels and what lies between them
LEAST_GPU_SIDE = 32  # of a matrix; a narrower one would leave most of each block empty

_chosen: ContextVar[Implementation] = ContextVar("implementation", default="auto")
_working: WeakKeyDictionary[Network, dict[torch.device, bool]] = WeakKeyDictionary()  # what `_try` has said


@contextlib.contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Chooses the implementation of the updates inside, wherever it can compute a tensor.

    Args:
        implementation: `"auto"`; `"plain"`, the formulas as the paper has them; `"passes"`, the same
            in three passes; `"blocks"`, the same on a CPU's blocks; `"numba"`, the kernels for CPUs;
            `"triton"`, those for GPUs, on a CPU in Triton's interpreter.
    """
    if implementation not in get_args(Implementation):
        names = ", ".join(map(repr, get_args(Implementation)))
        raise ValueError(f"implementation must be one of {names}, got {implementation!r}.")
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)


def choose(network: Network, param: Tensor, layout: Layout, *, kernels: bool = True) -> Implementation:
    """How to compute this parameter's step; never `"auto"`.

    Args:
        network: The weights and the options.
        param: Gives dtype, device and size.
        layout: How the rule sees it.
        kernels: Whether compiled kernels may be chosen; `use` counts for more.
    """
    chosen = _chosen.get()
    if chosen == "plain" or not passes.covers(len(layout.shape), layout.axes, network.config):
        return "plain"
    if chosen in KERNELS.values():
        return chosen if _fits(network, param, chosen) else "passes"
    if chosen == "auto":
        if kernels and _is_large(param, layout):
            compiled = KERNELS.get(param.device.type)
            if compiled and _fits(network, param, compiled) and _works(network, param.device):
                return compiled
        if param.device.type != "cpu" or param.numel() < LEAST_SIZE:
            return "plain"
    whole_rows = layout.shape[-1] <= blocks.BLOCK_SIZE  # which a block has
    return "blocks" if chosen != "passes" and whole_rows else "passes"


def make_passes(network: Network, implementation: Implementation) -> Passes:
    """The passes of an implementation that `choose` has named, not `"plain"`."""
    if implementation == "blocks":
        return blocks.make_passes(network)
    if implementation == "numba":
        from celo2.torch import numba_passes

        return numba_passes.make_passes(network)
    if implementation == "triton":
        from celo2.torch import triton_passes

        return triton_passes.make_passes(network)
    return passes.make_passes(network)


def check_kernels(network: Network, device: torch.device) -> None:
    """Raises a RuntimeError, with the remedy, where a network has no compiled kernels on a device."""
    compiled = KERNELS.get(device.type)
    remedy = "leave fused None."
    if compiled is None:
        raise RuntimeError(f"fused=True: there are no kernels for {device.type} devices; {remedy}")
    if not kernel_inputs.fits(network.config):
        raise RuntimeError(f"fused=True: the kernels are not written for a network of this size; {remedy}")
    if not _is_installed(compiled):
        extra = " (pip install 'celo2[cpu]')" if compiled == "numba" else ""
        raise RuntimeError(f"fused=True needs {compiled.title()}; install it{extra} or {remedy}")


def _is_large(param: Tensor, layout: Layout) -> bool:
    """Whether a matrix is worth the calls of kernels and what lies between them."""
    if param.device.type == "cpu":
        return param.numel() >= LEAST_SIZE
    return param.numel() >= LEAST_GPU_SIZE and min(layout.shape[-2:]) >= LEAST_GPU_SIDE


def _fits(network: Network, param: Tensor, compiled: Implementation) -> bool:
    """Whether kernels are installed and written for such a network and parameter."""
    return param.dtype != torch.float64 and kernel_inputs.fits(network.config) and _is_installed(compiled)


@functools.cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _works(network: Network, device: torch.device) -> bool:
    """Whether kernels can be compiled for a device and run there, tried once."""
    known = _working.setdefault(network, {})
    if device not in known:
        known[device] = _try(network, device)
    return known[device]


def _try(network: Network, device: torch.device) -> bool:
    """Runs the kernels on a small matrix; on a CPU they are kept on disk."""
    if torch.version.hip is not None and device.type == "cuda":
        return False
    try:
        matrix = torch.ones(LEAST_GPU_SIDE, LEAST_GPU_SIDE, device=device)
        row, col, units = matrix[:, :1], matrix[:1], matrix[:8]
        state = Accumulators((matrix.clone(), matrix.clone(), matrix.clone()), (matrix.clone(),), (), ())
        inputs = Inputs(matrix, matrix, state, ((row, col),) * 3, ((row, col),) * 3)
        made = make_passes(network, KERNELS[device.type])
        made.square_means(matrix)
        made.direct(inputs, made.accumulate(inputs), (units[..., None], units[:, None]))
    except Exception as error:  # whatever it is, other programs still work
        warnings.warn(f"compiled kernels are not used, since they do not run: {error!r}", stacklevel=2)
        return False
    return True
