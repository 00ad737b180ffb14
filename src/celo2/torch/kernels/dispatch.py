"""Chooses the implementation for each tensor: the plain program, compiled kernels, or blocks on a CPU.

By default, kernels serve matrices on a CPU if Numba is installed and on a CUDA device if Triton is;
blocks serve other matrices on a CPU; and the plain program (`step.py`) serves vectors and rare options. The
optimizer's `foreach` and `fused` switch kernels off and on; benchmarks and tests choose with `use`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from celo2._utils.user_warnings import warn
from celo2.torch import three_pass
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Layout
from celo2.torch.features import Inputs
from celo2.torch.kernels import cpu_blocked, interface
from celo2.torch.three_pass import Passes
from celo2.torch.weights import Network

Implementation = Literal["auto", "plain", "passes", "blocks", "numba", "triton"]

KERNELS: dict[str, Implementation] = {"cpu": "numba", "cuda": "triton"}  # by device type
# Elements of the smallest matrix that blocks serve; below, stacking in the plain program is cheaper.
# Measured by `benchmarks/torch_step.py --programs plain blocks --size 8x32x32 8x48x48 8x64x64 8x96x96
# 8x128x128 8x192x192 8x384x384` (one thread, commit 29a05c1, shipped weights): blocks took 3.0, 2.8, 2.5,
# 0.96, 0.76, 1.5 and 0.70 times as long as the plain program.
LEAST_SIZE = 1 << 13
# On a GPU the kernels serve matrices with both sides at least LEAST_SIDE, since narrower ones leave most of
# each block empty, and those of at most SMALL_SIZE elements, for which launches cost more than empty blocks.
# Not measured on a GPU; `benchmarks/torch_step.py --programs plain triton --size 8x16x4096 8x16x8192
# 8x32x4096` measures it.
LEAST_SIDE = 32
SMALL_SIZE = 1 << 16
LARGEST_SIDE = 1 << 20  # CUDA's limit of a grid, not a measured one: 65,535 blocks of 16 rows

_chosen: ContextVar[Implementation] = ContextVar("implementation", default="auto")
_working: WeakKeyDictionary[Network, dict[torch.device, bool]] = WeakKeyDictionary()  # results of `_try`


@contextlib.contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Selects the implementation of all updates inside the `with` block, wherever it supports a tensor.

    Args:
        implementation: `"auto"`; `"plain"`, the formulas as in the paper; `"passes"`, the same
            in three passes; `"blocks"`, the same on blocks on a CPU; `"numba"`, the CPU kernels;
            `"triton"`, the GPU kernels, run on a CPU in Triton's interpreter.
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
    """Returns the implementation for this parameter's step; never `"auto"`.

    Args:
        network: The weights and the options.
        param: The parameter, of which dtype, device and size matter.
        layout: Its layout.
        kernels: Whether compiled kernels may be chosen; `use` takes precedence.
    """
    chosen = _chosen.get()
    if chosen == "plain" or param.numel() == 0 or not three_pass.covers(layout.axes, network.config):
        return "plain"
    if chosen in KERNELS.values():
        return chosen if _fits(network, param, chosen) else "passes"
    shape = layout.shape if layout.axes else layout.shape[::-1]  # a vector is one row
    if chosen == "auto":
        compiled = KERNELS.get(param.device.type) if kernels else None
        if compiled and _suits(network, param, shape, compiled):
            return compiled
        if param.device.type != "cpu" or param.numel() < LEAST_SIZE or layout.axes is None:
            return "plain"
    whole_rows = shape[-1] <= cpu_blocked.BLOCK_SIZE  # which a block has
    return "blocks" if chosen != "passes" and whole_rows else "passes"


@functools.lru_cache(maxsize=16)
def make_passes(network: Network, implementation: Implementation, *, factored: bool) -> Passes:
    """Makes the passes of an implementation named by `choose`, not "plain"; see `three_pass.make_passes`."""
    if implementation == "blocks":
        return cpu_blocked.make_passes(network, factored=factored)
    if implementation == "numba":
        from celo2.torch.kernels import cpu_numba

        return cpu_numba.make_passes(network, factored=factored)
    if implementation == "triton":
        from celo2.torch.kernels import gpu_triton

        return gpu_triton.make_passes(network, factored=factored)
    return three_pass.make_passes(network, factored=factored)


def check_kernels(network: Network, device: torch.device) -> None:
    """Raises a RuntimeError, with the remedy, if a network has no compiled kernels on a device.

    Even if it has some, they may not support individual tensors, for example float64 ones.
    """
    compiled = KERNELS.get(device.type)
    remedy = "leave fused None."
    if device.type == "meta":  # the real device is not known yet
        return
    if compiled is None:
        raise RuntimeError(f"fused=True: there are no kernels for {device.type} devices; {remedy}")
    if not interface.fits(network.config) or not three_pass.covers(None, network.config):
        raise RuntimeError(
            f"fused=True: the kernels are not written for a network of this size or options; {remedy}"
        )
    if not _is_installed(compiled):
        extra = " (pip install 'celo2[cpu]')" if compiled == "numba" else ""
        raise RuntimeError(f"fused=True needs {compiled.title()}; install it{extra} or {remedy}")


def _suits(network: Network, param: Tensor, shape: Sequence[int], compiled: Implementation) -> bool:
    """Returns whether kernels suit such a matrix: the grid is not too large and blocks not mostly empty."""
    rows, cols = shape[-2:]
    if param.device.type != "cpu":
        narrow = min(rows, cols) < LEAST_SIDE and rows * cols > SMALL_SIZE
        if narrow or max(rows, cols) > LARGEST_SIDE:
            return False
    return _fits(network, param, compiled) and _works(network, param.device)


def _fits(network: Network, param: Tensor, compiled: Implementation) -> bool:
    """Returns whether kernels are installed and support this network and parameter."""
    return param.dtype != torch.float64 and interface.fits(network.config) and _is_installed(compiled)


@functools.cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _works(network: Network, device: torch.device) -> bool:
    """Returns whether kernels compile and run on a device, tried once."""
    known = _working.setdefault(network, {})
    if device not in known:
        known[device] = _try(network, device)
    return known[device]


def _try(network: Network, device: torch.device) -> bool:
    """Runs the kernels on a small matrix; on a CPU they are cached on disk."""
    if torch.version.hip is not None and device.type == "cuda":
        return False
    try:
        matrix = torch.ones(LEAST_SIDE, LEAST_SIDE, dtype=torch.float32, device=device)
        row, col, units = matrix[:, :1], matrix[:1], matrix[: network.config.ff_hidden_size]
        state = Accumulators((matrix.clone(), matrix.clone(), matrix.clone()), (matrix.clone(),), (), ())
        inputs = Inputs(matrix, matrix, state, ((row, col),) * 3)
        passes = make_passes(network, KERNELS[device.type], factored=True)
        passes.square_means(matrix)
        passes.direct(inputs, passes.accumulate(inputs, None), (units[..., None], units[:, None]))
    except Exception as error:  # whatever the error, other programs still work
        warn(f"compiled kernels are not used, since they do not run: {error!r}")
        return False
    return True
