"""How the tests compile: quickly. Nearly all of their programs take longer to compile than to run.

Less optimisation, and fusions emitted by XLA's older and faster generator: the same formulas, but sums and
products may be contracted otherwise, so that last digits differ from those of a user's program. What must
not differ is compiled in full by the fixture `full_optimization`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

XLA_FLAGS = "--xla_cpu_use_fusion_emitters=false"  # known to every JAX from 0.7 on
DISABLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"

# The rule with every feature, each of one decay: for tests whose subject is not the network.
SMALL_RULE: dict[str, Any] = {
    "ff_hidden_size": 2,
    "initial_momentum_decays": (0.9,),
    "initial_adafactor_decays": (0.9,),
}


def environment(cache: Path | None = None) -> dict[str, str]:
    """Of a process that chooses its number of devices; those with one cache share what they compile."""
    shared = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**os.environ, "XLA_FLAGS": XLA_FLAGS, DISABLE: "true", **(shared if cache else {})}
