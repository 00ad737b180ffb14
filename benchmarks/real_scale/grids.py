"""Grids of settings that optimizers are tuned over, and the grids shared by all experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from celo2.tasks.base import Size

RATES: Mapping[Size, int] = {"small": 3, "tiny": 2}  # number of learning rates below full size


class Grid(NamedTuple):
    """Settings that an optimizer is tuned over.

    Attributes:
        rates: Peak learning rates.
        decays: Weight decays, each tried with every rate.
        source: The origin of the grid; its numbers are in `describe`.
    """

    rates: tuple[float, ...]
    decays: tuple[float, ...]
    source: str

    def shrunk(self, size: Size) -> Grid:
        """Returns the grid for a size: below full size, with fewer rates and only the first decay."""
        if size == "full":
            return self
        chosen = np.linspace(0, len(self.rates) - 1, RATES[size]).round().astype(int)
        fewer = self._replace(rates=tuple(self.rates[at] for at in chosen), decays=self.decays[:1])
        return self if fewer == self else fewer._replace(source=f"a part of the full grid, {self.source}")

    def edge(self, rate: float, decay: float) -> str:
        """Returns the edge of the grid at which a setting lies.

        Returns:
            "lowest" or "highest" for the learning rate; "decay" for the highest weight decay (0 is a bound);
            "" if at no edge or if there is only one value.
        """
        if len(self.rates) > 1 and rate in (low := min(self.rates), max(self.rates)):
            return "lowest" if rate == low else "highest"
        return "decay" if len(self.decays) > 1 and decay == max(self.decays) else ""

    def describe(self) -> str:
        """Describes the grid in words: its learning rates, weight decays and source."""
        low, high, count = min(self.rates), max(self.rates), len(self.rates)
        rates = f"{count} rates from {low:g} to {high:g}" if count > 1 else f"one rate, {low:g}"
        decays = ", ".join(f"{decay:g}" for decay in self.decays)
        return f"{rates}; weight decay{'s' if len(self.decays) > 1 else ''} {decays}; {self.source}"


def log_uniform(low: float, high: float, count: int = 7) -> tuple[float, ...]:
    """Returns `count` learning rates, log-uniform from `low` to `high`, rounded to three digits."""
    return tuple(float(f"{rate:.3g}") for rate in np.geomspace(low, high, count))


_CELO2 = Grid(log_uniform(1e-5, 1e-3), (0.0, 0.1, 10.0), "that of arXiv 2602.19142")
_MUON = Grid(_CELO2.rates, _CELO2.decays, "ours: that of celo2, as its steps have the same size")
SHARED_GRIDS: Mapping[str, Grid] = {  # of all experiments
    "celo2": _CELO2,
    "celo2-plus": _CELO2,
    "celo2-base": _CELO2,
    "muon": _MUON,
}
