"""Which program computes a tensor's direction: the plain one, or passes on a CPU's blocks or GPU kernels.

Nobody has to choose: blocks serve matrices on a CPU, kernels those on a CUDA device where Triton is
installed, the plain program (`step.py`) vectors and rare options. Benchmarks and tests choose with `use`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from celo2.torch import blocks, passes
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Layout
from celo2.torch.features import Inputs
from celo2.torch.network import Network
from celo2.torch.passes import Passes

__all__ = ["LEAST_SIZE", "Implementation", "choose", "make_passes", "use"]

Implementation = Literal["auto", "plain", "passes", "blocks", "triton"]

LEAST_SIZE = 1 << 12  # elements; below it, stacking equal tensors in the plain program costs less
LEAST_KERNEL_SIZE = 1 << 16  # elements; a smaller one is not worth three kernels and what lies between them
LEAST_SIDE = 32  # of a matrix; a narrower one would leave most of each block empty

_chosen: ContextVar[Implementation] = ContextVar("implementation", default="auto")
_working: WeakKeyDictionary[Network, dict[torch.device, bool]] = WeakKeyDictionary()  # what `_try` has said


@contextlib.contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Chooses the implementation of the updates inside, wherever it can compute a tensor.

    Args:
        implementation: `"auto"`; `"plain"`, the formulas as the paper has them; `"passes"`, the same
            in three passes; `"blocks"`, the CPU's; `"triton"`, the kernels, on the CPU in Triton's
            interpreter.
    """
    if implementation not in get_args(Implementation):
        names = ", ".join(map(repr, get_args(Implementation)))
        raise ValueError(f"implementation must be one of {names}, got {implementation!r}.")
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)


def choose(network: Network, param: Tensor, layout: Layout) -> Implementation:
    """How to compute this parameter's step; never `"auto"`."""
    chosen, config = _chosen.get(), network.config
    if chosen == "plain" or not passes.covers(len(layout.shape), layout.axes, config):
        return "plain"
    if chosen == "triton":
        return "triton" if _fits(network, param) else "passes"
    if chosen == "passes":
        return chosen
    if chosen == "blocks" or param.device.type == "cpu":
        if chosen == "auto" and param.numel() < LEAST_SIZE:
            return "plain"
        return "blocks" if layout.shape[-1] <= blocks.BLOCK_SIZE else "passes"  # a block has whole rows
    large = param.numel() >= LEAST_KERNEL_SIZE and min(layout.shape[-2:]) >= LEAST_SIDE
    return "triton" if large and _fits(network, param) and _works(network, param.device) else "plain"


def make_passes(network: Network, implementation: Implementation) -> Passes:
    """The passes of an implementation that `choose` has named, not `"plain"`."""
    if implementation == "blocks":
        return blocks.make_passes(network)
    if implementation == "triton":
        from celo2.torch import triton_passes

        return triton_passes.make_passes(network)
    return passes.make_passes(network)


def _fits(network: Network, param: Tensor) -> bool:
    """Whether Triton is there and its kernels are written for such a network and parameter."""
    if param.dtype == torch.float64 or importlib.util.find_spec("triton") is None:
        return False
    from celo2.torch import triton_passes

    return triton_passes.fits(network.config)


def _works(network: Network, device: torch.device) -> bool:
    """Whether kernels can be compiled for a device and run there, tried once."""
    known = _working.setdefault(network, {})
    if device not in known:
        known[device] = _try(network, device)
    return known[device]


def _try(network: Network, device: torch.device) -> bool:
    """Runs the kernels on a small matrix."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    try:
        matrix = torch.ones(LEAST_SIDE, LEAST_SIDE, device=device)
        row, col, units = matrix[:, :1], matrix[:1], torch.ones(8, LEAST_SIDE, device=device)
        state = Accumulators((matrix.clone(), matrix.clone(), matrix.clone()), (matrix.clone(),), (), ())
        inputs = Inputs(matrix, matrix, state, ((row, col),) * 3, ((row, col),) * 3)
        made = make_passes(network, "triton")
        made.square_means(matrix)
        made.direct(inputs, made.accumulate(inputs), (units[..., None], units[:, None]))
    except Exception as error:  # whatever it is, the plain program still works
        warnings.warn(f"the GPU kernels are not used, since they do not run: {error!r}", stacklevel=2)
        return False
    return True
