"""Measures the cost of a step on a GPU and checks its results; prints tables and writes a JSON file.

    python benchmarks/gpu.py --json gpu.json

It runs these in order and writes the file after each: the kernels against the plain program and the float64
oracle; the bandwidth of a copy, and of the kernels on one matrix for several block sizes; steps on GPT-2
small and, if memory allows, GPT-3 XL, against AdamW and Muon; a whole training step of a GPT of GPT-2's size;
XLA's passes and the kernels on one matrix. Without a GPU it compares tiny arrays with interpreted kernels,
says so, and exits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from celo2.evaluate.bench import COLUMNS, BenchRow, bench_tree, bench_whole_step
from celo2.evaluate.bench_trees import TREES
from celo2.evaluate.environment import describe_environment
from celo2.jax import accumulators, dispatch, step, three_pass
from celo2.jax.accumulators import Leaf
from celo2.jax.dimensions import make_axes
from celo2.jax.pallas import kernels as pallas
from celo2.jax.pallas.blocks import Block
from celo2.tasks.language.tiny_lm import TransformerConfig
from celo2.weights.checkpoint import load_checkpoint

TESTS = Path(__file__).resolve().parents[1] / "tests"  # with the oracle and the tolerances
BYTES_PER_PARAMETER = 84  # that a step of the base rule must move, including its application
KERNEL_BYTES = 72  # of these, moved by the kernels
COPY_BYTES = 1 << 30
MATRIX = (4096, 4096)
ROUNDS = 20
BLOCKS = tuple(Block(*sizes) for sizes in ((16, 64, 8), (8, 64, 4), (16, 32, 4), (4, 128, 4), (32, 64, 8)))
GPU_SHAPES = ((768, 3072), (3072, 768), (768, 768), (1000, 70), (3, 200, 333))
TINY_SHAPES = ((40, 36),)
OPTIMIZERS = ("muon", "celo2-base", "celo2")
GPT2 = TransformerConfig(width=768, num_layers=12, num_heads=12, context=1024)  # on bytes: 86 M parameters
GPT2_BATCH = 8
XL_MEMORY = 120e9  # approximate bytes that three optimizers of 1.3 B parameters need at once

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the figures go")
    parser.add_argument("--seconds", type=float, default=10.0, help="timing of one table")
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    record: Record = {"environment": describe_environment()}
    print(json.dumps(record["environment"], indent=1))
    if jax.default_backend() != "gpu":
        print("no GPU: the kernels are interpreted on tiny arrays, and nothing is timed.")
        record["parity"] = check_parity(TINY_SHAPES, "pallas_interpret")
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return
    for name, measure in make_stages(options.seconds).items():
        print(f"\n{name}", flush=True)
        record[name] = measure(record)
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


def make_stages(seconds: float) -> dict[str, Callable[[Record], Any]]:
    """Returns the measurements in order; each receives the earlier results."""

    def tree(name: str) -> Callable[[Record], Any]:
        return lambda found: show_rows(
            bench_tree(TREES[name].make(), OPTIMIZERS, budget=seconds, on_progress=print),
            found["copy"]["bytes_per_second"],
        )

    def whole_step(found: Record) -> Any:
        rows = bench_whole_step(
            OPTIMIZERS, config=GPT2, batch_size=GPT2_BATCH, budget=seconds, on_progress=print
        )
        return show_rows(rows, found["copy"]["bytes_per_second"])

    return {
        "parity": lambda _: check_parity(GPU_SHAPES, "pallas"),
        "copy": lambda _: measure_copy(),
        "blocks": measure_blocks,
        "gpt2-124m": tree("gpt2-124m"),
        "whole-step": whole_step,
        "gpt3-xl": lambda found: tree("gpt3-xl")(found) if memory() > XL_MEMORY else "not enough memory",
        "XLA's passes on one matrix": lambda found: measure_matrix(found, "xla"),
        "kernels on one matrix": lambda found: measure_matrix(found, "pallas"),
    }


def memory() -> float:
    """Returns the number of bytes that the first device may use."""
    return float((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0))


def check_parity(shapes: tuple[tuple[int, ...], ...], name: Any) -> list[Record]:
    """Compares three steps of the base rule by the kernels, the plain program and the float64 oracle."""
    from helpers.tolerances import relative_error, tolerance

    records = []
    for shape in shapes:
        kernels, plain = (take_steps(shape, each) for each in (name, "plain"))
        exact = take_oracle_steps(shape)
        found = {
            "shape": shape,
            "kernels, plain": relative_error(kernels, plain),
            "kernels, oracle": relative_error(kernels, exact),
            "plain, oracle": relative_error(plain, exact),
            "tolerance": tolerance("jax float32, oracle"),
        }
        found["within"] = found["kernels, oracle"] <= found["tolerance"]
        print(json.dumps(found), flush=True)
        records.append(found)
    return records


def make_arrays(shape: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Makes a parameter and three gradients in float32."""
    rng = np.random.default_rng(0)
    param = rng.standard_normal(shape).astype(np.float32)
    return param, [(1e-2 * rng.standard_normal(shape)).astype(np.float32) for _ in range(3)]


def take_steps(shape: tuple[int, ...], name: Any) -> np.ndarray:
    """Computes the third step of the shipped base weights."""
    weights, axes = load_checkpoint("celo2-base"), make_axes(shape)
    config = weights.config
    param, grads = make_arrays(shape)
    with dispatch.use(name):
        update = jax.jit(partial(step.update, dict(weights.arrays), axes=axes, config=config))
        state = accumulators.init(shape, axes, config, jnp.dtype("float32"))
        result = jnp.asarray(param)
        for count, grad in enumerate(grads, start=1):
            result, state = update(jnp.asarray(grad), jnp.asarray(param), state, jnp.int32(count))
    return np.asarray(result)


def take_oracle_steps(shape: tuple[int, ...]) -> np.ndarray:
    """Computes the same in float64."""
    from oracle import rule as oracle

    weights = load_checkpoint("celo2-base")
    options = oracle.make_options({"orthogonalize": False})
    param, grads = make_arrays(shape)
    state = oracle.init(shape, options)
    result = np.zeros(shape)
    for grad in grads:
        result, state = oracle.update(dict(weights.arrays), state, grad, param, options)
    return result


def time_calls(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns the median time of a compiled call in seconds."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def measure_copy() -> Record:
    """Measures the bytes per second of a pass that reads one array and writes another."""
    array = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    seconds = time_calls(jax.jit(lambda x: x + 1), array)
    found = {"bytes_per_second": 2 * COPY_BYTES / seconds}
    print(f"copy: {found['bytes_per_second'] / 1e12:.2f} TB/s")
    return found


def measure_blocks(found: Record) -> list[Record]:
    """Times the three kernels on one matrix for several block sizes; the state is copied, not donated."""
    weights, axes = load_checkpoint("celo2-base"), make_axes(MATRIX)
    assert axes is not None
    param, (grad, *_) = make_arrays(MATRIX)
    state = accumulators.init(MATRIX, axes, weights.config, jnp.dtype("float32"))
    records = []
    for block in BLOCKS:
        kernels = pallas.make_passes(dict(weights.arrays), weights.config, block=block)
        arrays, options = dict(weights.arrays), {"axes": axes, "config": weights.config}
        compute = partial(three_pass.compute, arrays, passes=kernels, **options)
        matrix = [Leaf(jnp.asarray(grad), jnp.asarray(param), state)]
        begin = time.perf_counter()
        run = jax.jit(compute).lower(matrix).compile()
        compiled = time.perf_counter() - begin
        seconds = time_calls(run, matrix)
        moved = KERNEL_BYTES + 32  # four state arrays are copied before they are updated
        rate = moved * grad.size / seconds
        records.append({"block": block, "seconds": seconds, "compile": compiled, "bytes_per_second": rate})
        share = rate / found["copy"]["bytes_per_second"]
        print(f"{block}: {1e3 * seconds:.3f} ms, {rate / 1e12:.2f} TB/s, {share:.0%} of a copy", flush=True)
    return records


def measure_matrix(found: Record, name: Any) -> list[Record]:
    """Times one implementation on a tree of one matrix."""
    tree = {"kernel": jax.ShapeDtypeStruct(MATRIX, jnp.float32)}
    with dispatch.use(name):
        rows = bench_tree(tree, ("celo2-base",), budget=2.0, on_progress=print)
    return show_rows(rows, found["copy"]["bytes_per_second"])


def show_rows(rows: list[BenchRow], copy: float) -> list[Record]:
    """Prints a table that includes the bytes that a copy would have moved in the time of a step."""
    print(" | ".join((*COLUMNS, f"copied bytes/param (rule: {BYTES_PER_PARAMETER})")))
    records = []
    for row in rows:
        copied = None if row.seconds is None else row.seconds * copy / row.num_parameters
        print(" | ".join((*row.cells(), "–" if copied is None else f"{copied:.0f}")), flush=True)
        records.append({**row._asdict(), "copied_bytes_per_parameter": copied})
    return records


if __name__ == "__main__":
    main()
