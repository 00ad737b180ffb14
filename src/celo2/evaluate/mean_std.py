"""Mean and standard deviation over seeds, as every table shows them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["MeanStd"]


class MeanStd(NamedTuple):
    """Mean and standard deviation over seeds; the deviation of one seed is NaN."""

    mean: float
    std: float

    @classmethod
    def over(cls, values: np.ndarray) -> MeanStd | None:
        """Of the runs of one setting, `(S,)`; None where there are none."""
        if values.size == 0:
            return None
        exact = values.astype(np.float64)
        return cls(float(exact.mean()), float(exact.std(ddof=1)) if exact.size > 1 else math.nan)

    def __str__(self) -> str:
        """Four digits after the point, the deviation where there is one."""
        if math.isnan(self.std):
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ±{self.std:.4f}"
