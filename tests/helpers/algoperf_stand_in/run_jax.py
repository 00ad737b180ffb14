"""Trains JAX submissions on the stand-in's workloads, and prints the versions and the losses as JSON.

    python tests/helpers/algoperf_stand_in/run_jax.py FOLDER …

Needs JAX and what a submission imports, nothing else: it is run under the versions that AlgoPerf pins.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

STEPS = 12


def main(folders: list[str]) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import algoperf_stand_in
    from algoperf_stand_in import jax_workloads

    losses = {}
    with algoperf_stand_in.install("jax"):
        for folder in folders:
            submission = algoperf_stand_in.load_submission(Path(folder))
            for name, workload in jax_workloads.WORKLOADS.items():
                run = jax_workloads.Run(submission, workload(), None)
                losses[f"{Path(folder).name} {name}"] = [run.step() for _ in range(STEPS)]
    versions = {name: metadata.version(name) for name in ("jax", "flax", "optax")}
    print(json.dumps({"versions": versions, "losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1:])
