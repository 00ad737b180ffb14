"""Final training loss with float32 and with bfloat16 state, on three tasks over three seeds.

    python benchmarks/state_dtype.py

Printed: final training loss (mean of the seeds) at the float32 state's best learning rate of three, and
the relative difference of the means with its standard error over the seeds (the same seed has the same
start and the same batches under both).
"""

from __future__ import annotations

import argparse
import os

import jax
import numpy as np
from probe import STEPS

from celo2.baselines import LEARNED
from celo2.evaluate.runner import run_grid
from celo2.tasks.registry import make_task

RATES = (1e-3, 2e-3, 5e-3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="fashion-mlp,tiny-lm,fashion-conv", help="names of celo2 compare")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    print(f"{'task':14}{'optimizer':12}{'rate':>8}{'float32':>10}{'bfloat16':>10}{'difference':>20}")
    for name in options.tasks.split(","):
        task = make_task(name)
        for variant, make in LEARNED.items():
            exact, rounded = (
                run_grid(
                    task,
                    lambda rate, make=make, dtype=dtype: make(rate, state_dtype=dtype),
                    RATES,
                    seeds=range(options.seeds),
                    steps=STEPS[name],
                )
                for dtype in (None, "bfloat16")
            )
            left, right = exact.final_train_loss[exact.best], rounded.final_train_loss[exact.best]
            relative = (right - left) / left.mean()
            error = relative.std(ddof=1) / np.sqrt(len(relative))
            print(
                f"{name:14}{variant:12}{RATES[exact.best]:>8g}{left.mean():>10.4f}{right.mean():>10.4f}"
                f"{100 * relative.mean():>10.2f} ± {100 * error:.2f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
