"""Scores weight files on probe tasks that meta-training has not seen, to choose among checkpoints.

    python benchmarks/probe.py runs/celo2/weights/celo2-00*.safetensors

Each file trains each probe over a few learning rates, with seeds that `celo2 compare` does not use by
default; printed is the final training loss at the best one. Lower is better; the last column is the mean
of the logarithms, by which the files are ranked.
"""

from __future__ import annotations

import argparse
import os

import jax
import numpy as np

from celo2 import load_checkpoint
from celo2.baselines import find_optimizer
from celo2.evaluate.runner import run_grid
from celo2.tasks.registry import make_task

SEEDS = (1000,)  # compare's are 0, 1, …
STEPS = {"fashion-mlp": 300, "tiny-lm": 150, "fashion-conv": 150, "digits-mlp": 300}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", nargs="+", help="weight files")
    parser.add_argument("--tasks", default="fashion-mlp,tiny-lm", help="probes, by names of celo2 compare")
    parser.add_argument("--learning-rates", default="1e-3,3e-3,1e-2", help="tried for each")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    rates = [float(rate) for rate in options.learning_rates.split(",")]
    tasks = {name: make_task(name) for name in options.tasks.split(",")}
    print(f"{'weights':40}", *(f"{name:>22}" for name in tasks), f"{'mean log':>9}")
    for path in options.weights:
        spec = find_optimizer(f"{load_checkpoint(path).config.variant}:{path}")
        cells, logs = [], []
        for name, task in tasks.items():
            grid = run_grid(
                task, lambda rate, make=spec.make: make(rate, 0.0), rates, seeds=SEEDS, steps=STEPS[name]
            )
            best = float(grid.scores[grid.best])
            cells.append(f"{best:.4f} at {grid.learning_rates[grid.best]:g}")
            logs.append(np.log(best))
        print(
            f"{os.path.basename(path):40}",
            *(f"{cell:>22}" for cell in cells),
            f"{np.mean(logs):>9.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
