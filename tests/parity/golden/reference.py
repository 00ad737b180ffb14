"""Writes the reduced runs of the public reference implementation beside this file (`reference_*.npz`).

`PYTHONPATH=src python tests/parity/golden/reference.py [../shared/conformance]`

The numbers are recorded ones of that implementation, in the format in which they were recorded: nothing here
computes. A run keeps its first steps and some of its small leaves, which the rule and `adafac_mlp` treat one
by one. The estimate by PES is whole, since it is a mean over tasks. Of the predecessors the one with small
weights was taken: an LSTM's would fill a hundred kilobytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celo2 import zoo

HERE = Path(__file__).resolve().parent
RECORDED = HERE.parents[3] / "shared" / "conformance"
STEPS = 2
RULE_RUNS = {  # run → leaves
    "base_default": ("scale", "mlp/b", "square/w"),
    "celo2_mixed": ("scale", "mlp/b", "square/w", "stack/w", "conv/w"),  # ranks 0 to 4
}
PES_RUN = "many_resets"
PES_FILE = f"reference_pes_{PES_RUN}.npz"
ZOO_RUN = "adafac_mlp"
ZOO_FILE = f"reference_{ZOO_RUN}.npz"
ZOO_LEAVES = ("scale", "mlp/b", "square/w", "conv/w")

Arrays = dict[str, NDArray[Any]]


def read(path: Path) -> Arrays:
    """The arrays of one file."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def select(arrays: Arrays, lengths: Mapping[str, int], leaves: Collection[str]) -> Arrays:
    """The entries `kind/step/leaf` of these leaves, and so many steps of each kind."""
    return {
        name: arrays[name]
        for name in (
            f"{k}/{t}/{leaf}" for k, length in lengths.items() for t in range(length) for leaf in leaves
        )
    }


def reduce_rule_run(recorded: Path, name: str) -> Arrays:
    """The first steps of a run of Celo2, on some leaves."""
    arrays = read(recorded / "rule" / f"{name}.npz")
    config = json.loads(str(arrays["config_json"])) | {"steps": STEPS}
    lengths = {"params": STEPS, "grads": STEPS, "updates": STEPS}
    return {
        "config_json": np.asarray(json.dumps(config)),
        **{key: array for key, array in arrays.items() if key.startswith("theta/")},
        **select(arrays, lengths, RULE_RUNS[name]),
    }


def reduce_zoo_run(recorded: Path) -> Arrays:
    """The first steps of a run of a predecessor and its weights; `num_steps` stays the whole run's."""
    arrays = read(recorded / "zoo" / f"{ZOO_RUN}.npz")
    theta = zoo.load_weights(recorded / "zoo" / f"{ZOO_RUN}.theta.state").arrays
    return {
        "num_steps": arrays["num_steps"],
        **{f"theta/{name}": np.asarray(array) for name, array in theta.items()},
        **{f"loss/{t}": arrays[f"loss/{t}"] for t in range(STEPS)},
        **select(arrays, {"params": STEPS + 1, "grads": STEPS}, ZOO_LEAVES),
    }


FILES: dict[str, Callable[[Path], Arrays]] = {
    **{
        f"reference_{name}.npz": lambda recorded, name=name: reduce_rule_run(recorded, name)
        for name in RULE_RUNS
    },
    PES_FILE: lambda recorded: read(recorded / "pes" / f"{PES_RUN}.npz"),
    ZOO_FILE: reduce_zoo_run,
}


def main(recorded: Path = RECORDED) -> None:
    """Writes one file for each of `FILES`."""
    for name, reduce in FILES.items():
        np.savez_compressed(HERE / name, **reduce(recorded))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
