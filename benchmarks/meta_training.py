"""Measures the cost of meta-training: the seconds to run and to compile an outer iteration.

    python benchmarks/meta_training.py

The setting is the published one: four image sets × eight tasks × two signs, K = 50, networks 64-32-10,
batches of 64. Both rules are compiled first and then timed in turn, with calls of several iterations as made
by `celo2 meta-train`; the minimum and median are printed. A CPU is used as one device per core, a GPU as is.

The public engine needs 2.0 s for an iteration of either rule on two cores with AVX-512, and 4.5 hours on an
L40S for 100,000 iterations (neither figure is ours; the first was measured with its code, the second is its
authors').
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import get_args

import jax

from celo2.evaluate.environment import describe_environment
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.meta import outer
from celo2.meta.config import MetaConfig, Variant
from celo2.meta.inner.families import load_datasets, stack_data

PUBLIC_SECONDS = 2.0  # per iteration of the public engine on two cores
PUBLISHED_ITERATIONS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=get_args(Variant), default=["celo2", "celo2-base"])
    parser.add_argument("--families", nargs="+", default=["mlp"], help="task families, NAME or NAME:WEIGHT")
    parser.add_argument("--calls", type=int, default=7, help="timed, of each rule")
    parser.add_argument("--iterations", type=int, default=0, help="of a call; 0: about two seconds' worth")
    parser.add_argument("--devices", type=int, default=0, help="of a processor; 0: one for each core")
    options = parser.parse_args()
    use_cpu_devices(options.devices or num_cores())
    print(", ".join(f"{name} {text}" for name, text in describe_environment().items()))
    runs = {}
    for variant in options.variants:
        config = MetaConfig(variant=variant, families=tuple(options.families))
        started = time.monotonic()
        call = _start(config)
        call(1)
        compiling = time.monotonic() - started
        iterations = options.iterations or _sized(call)
        runs[variant] = (call, iterations, compiling, [])
    for _ in range(options.calls):
        for call, iterations, _, seconds in runs.values():
            seconds.append(_timed(call, iterations) / iterations)
    _print(runs)


def _start(config: MetaConfig) -> Callable[[int], None]:
    """Returns a function that computes a given number of further iterations of a run."""
    mesh = outer.make_mesh()
    data = stack_data(load_datasets(config), config)
    outer_steps = outer.make_outer_steps(config, mesh)
    state = outer.init(config, mesh)

    def call(iterations: int) -> None:
        nonlocal state
        state, metrics = outer_steps(state, data, iterations)
        jax.block_until_ready(metrics)

    return call


def _timed(call: Callable[[int], None], iterations: int) -> float:
    started = time.perf_counter()
    call(iterations)
    return time.perf_counter() - started


def _sized(call: Callable[[int], None]) -> int:
    return min(max(round(2.0 / _timed(call, 1)), 1), outer.MAX_STEPS)


def _print(runs: dict[str, tuple[Callable[[int], None], int, float, list[float]]]) -> None:
    columns = ("rule", "compile s", "least s", "median s", "public / median", "100,000 in h")
    print("".join(f"{column:>17}" for column in columns))
    for variant, (_, _, compiling, seconds) in runs.items():
        median = statistics.median(seconds)
        hours = median * PUBLISHED_ITERATIONS / 3600
        figures = f"{compiling:17.1f}{min(seconds):17.4f}{median:17.4f}{PUBLIC_SECONDS / median:17.1f}"
        print(f"{variant:>17}{figures}{hours:17.2f}")


if __name__ == "__main__":
    main()
