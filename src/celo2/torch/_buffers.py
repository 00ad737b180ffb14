"""The memory of one thread, used again for every block, and the order of the channels in it.

New memory for each intermediate result would cost more than the results: the system clears its pages.
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.config import RuleConfig

__all__ = ["Buffers", "Slots", "View"]


class Slots(NamedTuple):
    """Which rows of a block's buffer `(channels, elements)` hold what.

    Channels that are made by one operation are neighbours, and all have a place: those whose feature is
    off have weights of zero. With the default options:

        m0 m1 m2 g | p v | s | clip(g) | m0 s, m1 s, m2 s, g s | m0 f0, m1 f1, m2 f2 | g f0, g f1, g f2

    Attributes:
        momentum: And the gradient after it.
        rms: After the parameter.
        rsqrt: Reciprocal roots of rms.
        clipped: One row.
        normalized: Momenta, then gradients, over the roots of rms.
        factored_momentum: None where the feature is off.
        factored_grad: Gradients over the factored moments.
        size: Number of rows.
    """

    momentum: int
    rms: int
    rsqrt: int
    clipped: int
    normalized: int
    factored_momentum: int
    factored_grad: int
    size: int

    @classmethod
    @functools.cache
    def make(cls, config: RuleConfig) -> Slots:
        """The order for some options."""
        momenta, second = len(config.initial_momentum_decays), len(config.initial_rms_decays)
        factored = len(config.initial_adafactor_decays)
        sizes = (momenta + 2, second, second, 1, momenta + second, momenta * config.with_fac_mom_mult)
        starts = [0]
        for size in (*sizes, factored):
            starts.append(starts[-1] + size)
        return cls(*starts)

    def place(self, feature: str, number: int, config: RuleConfig) -> int:
        """The row of one of a feature's channels."""
        momenta = len(config.initial_momentum_decays)
        first = {
            "grad": momenta,
            "clipped_grad": self.clipped,
            "param": momenta + 1,
            "momentum": 0,
            "rms": self.rms,
            "normalized_momentum": self.normalized,
            "rsqrt_rms": self.rsqrt,
            "factored_grad": self.factored_grad,
            "normalized_grad": self.normalized + momenta,
            "factored_momentum": self.factored_momentum,
        }[feature]
        return first + number


class View(NamedTuple):
    """The buffers as one block of a given shape sees them, all contiguous.

    Attributes:
        channels: `(channels, elements)`.
        hidden: Two of `(units + 1, elements)`, the last row 1: what the next layer's bias multiplies.
        first: The first's units as `(units, rows, cols)`.
        factors: `(decays, elements)`.
        squares: `(momenta + 1, elements)`, of the momenta and the gradient.
        inverses: `(rms decays, elements)`.
    """

    channels: Tensor
    hidden: tuple[Tensor, Tensor]
    first: Tensor
    factors: Tensor
    squares: Tensor
    inverses: Tensor


class _Own(threading.local):
    """What each thread keeps from step to step."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[RuleConfig, torch.dtype], Buffers] = {}


_own = _Own()


class Buffers:
    """Room for blocks of up to some size; the views for the last shape that was asked for are kept."""

    @staticmethod
    def of_thread(size: int, config: RuleConfig, *, like: Tensor) -> Buffers:
        """This thread's, which it keeps: 5.5 MiB in float32 for the default options and block size."""
        known = _own.buffers.get((config, like.dtype))
        if known is None or known.size < size:
            known = _own.buffers[config, like.dtype] = Buffers(size, config, like=like)
        return known

    def __init__(self, size: int, config: RuleConfig, *, like: Tensor):
        self.size = size
        counts = [
            Slots.make(config).size,
            *[config.ff_hidden_size + 1] * 2,
            len(config.initial_adafactor_decays),
        ]
        counts += [len(config.initial_momentum_decays) + 1, len(config.initial_rms_decays)]
        self._memory = [like.new_empty(count * size) for count in counts]
        self._views: dict[tuple[int, int], View] = {}

    def view(self, rows: int, cols: int) -> View:
        """For a block of this shape."""
        if (rows, cols) not in self._views:
            size = rows * cols
            whole = [memory[: len(memory) // self.size * size] for memory in self._memory]
            self._views = {(rows, cols): self._make(whole, rows, cols)}
        return self._views[rows, cols]

    def _make(self, whole: list[Tensor], rows: int, cols: int) -> View:
        flat = [memory.view(-1, rows * cols) for memory in whole]
        for hidden in flat[1:3]:
            hidden[-1] = 1.0
        first = flat[1][:-1].view(-1, rows, cols)
        return View(flat[0], (flat[1], flat[2]), first, *flat[3:])
