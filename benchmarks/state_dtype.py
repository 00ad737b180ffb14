"""Compares final training losses with float32 and bfloat16 state, on three tasks with three seeds.

    python benchmarks/state_dtype.py

Prints the final training loss (mean over the last 5 % of the steps and over the seeds) at the float32 state's
best learning rate, and the relative difference of the means with its standard error over the seeds (a seed
has the same start and batches with both).
"""

from __future__ import annotations

import argparse
import os
import time

import jax
import numpy as np

from celo2.baselines import LEARNED
from celo2.evaluate.environment import describe_environment
from celo2.tasks.registry import make_task
from celo2.training.runner import run_grid

STEPS = {"fashion-mlp": 300, "tiny-lm": 150, "fashion-conv": 150, "digits-mlp": 300}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="fashion-mlp,tiny-lm,fashion-conv", help="names of celo2 compare")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 5e-3], help="peak rates tried")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each rate: seeds 0, 1, …")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of each task")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    started = time.monotonic()
    print(", ".join(f"{name} {text}" for name, text in describe_environment().items()))
    print(f"{'task':14}{'steps':>6} {'optimizer':12}{'rate':>8}{'float32':>10}{'bfloat16':>10}  difference")
    for name in options.tasks.split(","):
        task, steps = make_task(name), max(2, round(options.share * STEPS[name]))
        for variant, make in LEARNED.items():
            exact, rounded = (
                run_grid(
                    task,
                    lambda rate, make=make, dtype=dtype: make(rate, state_dtype=dtype),
                    options.rates,
                    seeds=range(options.seeds),
                    steps=steps,
                )
                for dtype in (None, "bfloat16")
            )
            left, right = exact.final_train_loss[exact.best], rounded.final_train_loss[exact.best]
            relative = (right - left) / left.mean()
            error = relative.std(ddof=1) / np.sqrt(len(relative))
            rate = options.rates[exact.best]
            print(
                f"{name:14}{steps:>6} {variant:12}{rate:>8g}{left.mean():>10.4f}{right.mean():>10.4f}"
                f"  {100 * relative.mean():.2f} ± {100 * error:.2f} %",
                flush=True,
            )
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
