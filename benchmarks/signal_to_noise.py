"""Measures the signal-to-noise ratio of the meta-gradient at fixed weights, one option changed at a time.

    python benchmarks/signal_to_noise.py --out runs/signal                    # resumes where it was stopped
    python benchmarks/signal_to_noise.py --out runs/signal --only recipe sigma-0.1 --iterations 200

Pair i estimates the meta-gradient as gᵢ = μ + noise. The signal is ‖μ‖² divided by the mean of ‖gᵢ - μ‖², the
signal-to-noise ratio of a single pair. The metric `signal_to_noise` of n pairs exceeds it by 1/(n - 1), which
noise alone gives. The signal is so small that it takes hundreds of iterations to see it; the theta of the
recipe's start is kept for all of them. `--markdown` replaces the table in `docs/learned_weights.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from pages import DOCS, format_machine, format_table, replace_table

from celo2._utils.files import write_atomic
from celo2.evaluate.environment import describe_environment
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.meta import outer
from celo2.meta.config import MetaConfig
from celo2.meta.inner.families import load_datasets, stack_data

ROOT = Path(__file__).resolve().parents[1]
PAGE = DOCS / "learned_weights.md"
RECIPE = ROOT / "recipes" / "tried" / "celo2-noise-reuse-20000.json"
REFERENCE = "recipe"
BATCH = 50  # iterations per batch mean: iterations of one inner run are correlated
WARM_UP = 20  # iterations that are not counted: the first inner runs begin midway


class Setting(NamedTuple):
    """One change to the recipe: in words, and as options of `MetaConfig`."""

    what: str
    options: dict[str, Any]


SETTINGS = {
    REFERENCE: Setting("σ = 0.05, noise reuse with resumed runs, logarithms of losses", {}),
    "sigma-0.01": Setting("σ = 0.01", {"sigma": 0.01}),
    "sigma-0.02": Setting("σ = 0.02", {"sigma": 0.02}),
    "sigma-0.1": Setting("σ = 0.1", {"sigma": 0.1}),
    "sigma-0.2": Setting("σ = 0.2", {"sigma": 0.2}),
    "digits": Setting(
        "with `digits`, which is memorised", {"datasets": ("fashion-mnist", "mnist", "patches", "digits")}
    ),
    "linear-loss": Setting("losses as they are", {"loss_scale": "linear"}),
    "sign": Setting("each pair one vote", {"loss_difference": "sign"}),
    "fresh": Setting("no resumed runs", {"resume_probability": 0.0}),
    "pes": Setting("PES, no resumed runs", {"estimator": "pes", "resume_probability": 0.0}),
    "pes-resumed": Setting("PES", {"estimator": "pes"}),
    "truncated": Setting(
        "truncated evolution strategies, no resumed runs",
        {"estimator": "truncated-es", "resume_probability": 0.0},
    ),
    "constant-rate": Setting("constant inner rate", {"inner_schedule": "constant"}),
    "inner-clip": Setting("inner gradients clipped to norm 1", {"inner_clip": 1.0}),
    "batch-256": Setting("inner batches of 256", {"batch_size": 256}),
    "expert": Setting("direction loss towards Muon, weight 0.3", {"expert": "muon", "expert_weight": 0.3}),
    "adam-start": Setting("at the Adam-like start", {"start": "adam", "rule_options": ()}),
    "transformer": Setting(
        "transformers only", {"families": ("transformer",), "family_rates": ("transformer:0.4",)}
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--iterations", type=int, default=1000, help="counted, of each setting")
    parser.add_argument("--devices", type=int, default=0, help="of a processor; 0: one for each core")
    parser.add_argument("--markdown", action="store_true", help="replace the table in the docs")
    options = parser.parse_args()
    use_cpu_devices(options.devices or num_cores())
    options.out.mkdir(parents=True, exist_ok=True)
    records = {}
    for name in options.only:
        path = options.out / f"{name}.json"
        if not path.exists():
            record = {**measure(name, options.iterations), "environment": describe_environment()}
            write_atomic(path, f"{json.dumps(record)}\n".encode())
            jax.clear_caches()
        records[name] = json.loads(path.read_text())
        print(name, _format(name, records[name]), flush=True)
    if options.markdown:
        head = ("setting", "signal of a pair, ‰", "seconds per iteration", "mean meta-loss")
        table = format_table(head, [_format(name, one) for name, one in records.items()])
        replace_table(PAGE, "signal", table + format_machine(next(iter(records.values()))["environment"]))


def measure(name: str, iterations: int) -> dict[str, Any]:
    """Runs iterations of a setting at fixed theta; returns its record."""
    config = dataclasses.replace(_recipe(), **SETTINGS[name].options)
    mesh, fixed = outer.make_mesh(), optax.set_to_zero()
    data = stack_data(load_datasets(config), config)
    outer_steps = outer.make_outer_steps(config, mesh, fixed)
    state, _ = outer_steps(outer.init(config, mesh, fixed), data, WARM_UP)
    jax.block_until_ready(state)
    ratios: list[float] = []
    losses: list[float] = []
    started = time.perf_counter()
    while len(ratios) < iterations:
        state, metrics = outer_steps(state, data, BATCH)
        ratios += np.asarray(metrics.signal_to_noise)[:BATCH].tolist()
        losses += np.asarray(metrics.meta_loss)[:BATCH].tolist()
    seconds = (time.perf_counter() - started) / len(ratios)
    return {"pairs": config.num_pairs, "seconds": seconds, "ratios": ratios, "losses": losses}


def _recipe() -> MetaConfig:
    """Returns the recipe without its transformers, which take most of the time, and without an update."""
    recipe = MetaConfig.load(RECIPE)
    start = str(ROOT / recipe.start)
    return dataclasses.replace(
        recipe,
        families=("mlp", "autoencoder"),
        family_rates=(),
        start=start,
        outer_optimizer=outer.CUSTOM,
        outer_warmup=0,
        outer_decay_steps=0,
        outer_clip=0.0,
    )


def _format(name: str, record: dict[str, Any]) -> tuple[str, str, str, str]:
    signal, error = estimate_signal(np.asarray(record["ratios"]), record["pairs"])
    change = SETTINGS[name].what
    figures = f"{1e3 * signal:.2f} ± {1e3 * error:.2f}"
    return change, figures, f"{record['seconds']:.3f}", f"{np.mean(record['losses']):.2f}"


def estimate_signal(ratios: np.ndarray, pairs: int) -> tuple[float, float]:
    """Returns the signal-to-noise ratio of one pair and its standard error, from those of all pairs."""
    batches = ratios.reshape(-1, BATCH).mean(axis=1) - 1.0 / (pairs - 1)
    return float(batches.mean()), float(batches.std(ddof=1) / np.sqrt(len(batches)))


if __name__ == "__main__":
    main()
