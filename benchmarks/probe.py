"""Scores weight files on probes with a number of steps for each task, as the model cards quote them.

    python benchmarks/probe.py runs/celo2/weights/celo2-00*.safetensors adam adamw muon

What `celo2 probe` does, but for the steps. The score is relative to the first in the list; lower is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import os

import jax
from rich.console import Console

from celo2.commands.probe import load_candidates, make_table, measure
from celo2.meta.probe import ProbeConfig, compute_score

STEPS = {"fashion-mlp": 300, "tiny-lm": 150, "fashion-conv": 150, "digits-mlp": 300}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("candidates", nargs="+", help="as in celo2 probe")
    parser.add_argument("--tasks", default="fashion-mlp,tiny-lm", help="probes, by names of celo2 compare")
    parser.add_argument("--learning-rates", default="1e-3,3e-3,1e-2", help="tried with weights")
    parser.add_argument(
        "--standard-rates", type=int, default=5, help="how many are tried with other optimizers"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each learning rate")
    parser.add_argument("--variant", default="celo2", help="of adam and random")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    rates = tuple(float(rate) for rate in options.learning_rates.split(","))
    whole = ProbeConfig(tasks=tuple(options.tasks.split(",")), rates=rates, seeds=options.seeds)
    candidates = load_candidates(options.candidates, options.variant)
    found: dict[str, dict] = {name: {} for name in candidates}
    for task in whole.tasks:
        config = dataclasses.replace(whole, tasks=(task,), steps=STEPS[task])
        for name, records in measure(candidates, config, num_rates=options.standard_rates):
            found[name] |= records
    first = next(iter(found.values()))
    scores = {name: compute_score(records, first) for name, records in found.items()}
    steps = ", ".join(f"{name} {STEPS[name]}" for name in whole.tasks)
    Console(width=160).print(make_table(found, scores, f"final training loss after {steps} steps"))


if __name__ == "__main__":
    main()
