"""Scores weight files on probe tasks that meta-training has not seen, to choose among checkpoints.

    python benchmarks/probe.py runs/celo2/weights/celo2-00*.safetensors adamw muon

Each file (or optimizer of `celo2 compare`, as a standard) trains each probe over a grid of learning
rates, with seeds that `celo2 compare` does not use by default; printed is the mean final training loss at
the best one. Lower is better; the last column is the mean of the logarithms, by which files are ranked.
"""

from __future__ import annotations

import argparse
import os

import jax
import numpy as np

from celo2 import load_checkpoint
from celo2.baselines import OPTIMIZERS, find_optimizer
from celo2.evaluate.runner import run_grid
from celo2.tasks.registry import make_task

FIRST_SEED = 1000  # compare's are 0, 1, …
STEPS = {"fashion-mlp": 300, "tiny-lm": 150, "fashion-conv": 150, "digits-mlp": 300}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("optimizers", nargs="+", help="weight files, or names")
    parser.add_argument("--tasks", default="fashion-mlp,tiny-lm", help="probes, by names of celo2 compare")
    parser.add_argument("--learning-rates", default="1e-3,3e-3,1e-2", help="tried for each file")
    parser.add_argument("--standard-rates", type=int, default=5, help="how many are tried for each name")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each learning rate")
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    rates = [float(rate) for rate in options.learning_rates.split(",")]
    tasks = {name: make_task(name) for name in options.tasks.split(",")}
    print(f"{'optimizer':40}", *(f"{name:>22}" for name in tasks), f"{'mean log':>9}")
    for given in options.optimizers:
        named = given in OPTIMIZERS
        spec = find_optimizer(given if named else f"{load_checkpoint(given).config.variant}:{given}")
        tried = spec.learning_rates(options.standard_rates) if named else rates
        cells, logs = [], []
        for name, task in tasks.items():
            grid = run_grid(
                task, lambda rate, make=spec.make: make(rate, 0.0), tried, seeds=seeds, steps=STEPS[name]
            )
            best = float(grid.scores[grid.best])
            cells.append(f"{best:.4f} at {grid.learning_rates[grid.best]:g}")
            logs.append(np.log(best))
        row = [f"{os.path.basename(given):40}", *(f"{cell:>22}" for cell in cells), f"{np.mean(logs):>9.4f}"]
        print(*row, flush=True)


if __name__ == "__main__":
    main()
