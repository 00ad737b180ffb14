"""Sums of squares over a matrix: the few that are taken, and those of the channels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Sums"]


class Sums(NamedTuple):
    """Sums of squares over a matrix, from which those of all channels are taken.

    Attributes:
        plain: Of the momenta and the gradient.
        normalized: `(momenta + 1, rms decays)`, over the second moments.
        factored: `(decays, momenta + 1)`, over the factored moments.
        alone: Of the parameter, the clipped gradient, the rms, their reciprocal roots.
    """

    plain: Tensor
    normalized: Tensor
    factored: Tensor
    alone: Tensor

    def of(self, feature: str, index: int) -> Tensor:
        """Of one of a feature's channels."""
        momenta, second = len(self.plain) - 1, self.normalized.shape[1]
        return {
            "grad": lambda: self.plain[-1],
            "clipped_grad": lambda: self.alone[1],
            "param": lambda: self.alone[0],
            "momentum": lambda: self.plain[index],
            "rms": lambda: self.alone[2 + index],
            "normalized_momentum": lambda: self.normalized[index, index % second],
            "rsqrt_rms": lambda: self.alone[2 + second + index],
            "factored_grad": lambda: self.factored[index, momenta],
            "normalized_grad": lambda: self.normalized[-1, index],
            "factored_momentum": lambda: self.factored[index, index],
        }[feature]()
