"""Made-up records of probes, as `celo2.meta.probe` writes them."""

from __future__ import annotations

import math
from typing import Any

TINY_SET = """
first_seed = 7
seeds = 2
[[tasks]]
name = "bowl"
task = "quadratic"
steps = 12
rate = 0.05
"""


def make_record(
    losses: list[float] | float | None, *, untrained: float = 8.0, rate: float = 0.01
) -> dict[str, Any]:
    """A task whose runs ended with these losses, one for each seed, at one rate; None: all diverged."""
    seeds = losses if isinstance(losses, list) else [losses]
    finite = [loss for loss in seeds if loss is not None]
    diverged = len(finite) < len(seeds)
    mean = None if diverged else math.fsum(finite) / len(finite)
    return {
        "loss": mean,
        "spread": None,
        "rate": None if diverged else rate,
        "at_edge": False,
        "valid_loss": mean,
        "valid_rate": None if diverged else rate,
        "rates": [rate],
        "losses": [mean],
        "train_losses": [seeds],
        "valid_losses": [seeds],
        "untrained": untrained,
        "seconds": 0.1,
    }
