"""Compares Newton–Schulz with fewer products and on the whole matrix: time, instructions, exactness.

    taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/newton_schulz.py

Prints for each shape and backend: the plain form's CPU time in milliseconds, the package's form's divided by
it (medians of interleaved calls in one process), both forms' errors in float32 (the spectral norm of the
difference to float64), and for JAX the number of instructions in the compiled program and the CPU time to
compile it.

The effect of coefficients on losses, paired by seeds on tasks that may be used for choices:

    PYTHONPATH=benchmarks celo2 probe celo2 newton_schulz:polar_express_5 newton_schulz:polar_express_4 \\
        --set choosing --tasks patches-perceptron stdlib-transformer
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import celo2
from celo2.config import RuleConfig
from celo2.jax import orthogonalize as in_jax
from celo2.newton_schulz import coefficient_options
from celo2.torch import orthogonalize as in_torch

SHAPES = ("384x384", "384x1536", "768x768", "768x3072", "1536x384")
COEFFICIENTS = {
    "muon": None,
    "polar-express": celo2.polar_express(5),
    "polar-express-4": celo2.polar_express(4),
}
SECONDS = 10.0  # per shape and backend
WHOLE = mock.patch.object(in_torch, "HALVED_SIDE", 1 << 30)  # does not halve symmetric products


def polar_express_5(learning_rate: Any, weight_decay: float = 0.0) -> optax.GradientTransformation:
    return celo2.celo2(learning_rate, weight_decay=weight_decay, ns_coeffs=celo2.polar_express(5))


def polar_express_4(learning_rate: Any, weight_decay: float = 0.0) -> optax.GradientTransformation:
    return celo2.celo2(learning_rate, weight_decay=weight_decay, ns_coeffs=celo2.polar_express(4))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x columns")
    parser.add_argument("--coefficients", choices=COEFFICIENTS, default="muon")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    torch.set_num_threads(1)
    config = RuleConfig(**coefficient_options(COEFFICIENTS[options.coefficients]))
    print(f"{'shape':>10} {'backend':8}{'plain ms':>9}{'ratio':>7}{'errors':>18}  instructions, compile ms")
    for shape in options.shapes:
        rows, columns = map(int, shape.split("x"))
        matrix = make_matrix(rows, columns)
        expected = iterate_float64(matrix, config)
        for backend, prepare in {"jax": prepare_jax, "torch": prepare_torch}.items():
            forms, notes = zip(*(prepare(matrix, config, gram) for gram in (False, True)), strict=True)
            errors = [np.linalg.norm(np.asarray(form(), np.float64) - expected, 2) for form in forms]
            plain, package = measure(forms)
            shown = f"{errors[0]:9.1e}{errors[1]:9.1e}"
            line = f"{shape:>10} {backend:8}{1e3 * plain:9.1f}{package / plain:7.2f}{shown}"
            print(f"{line}  {' → '.join(notes)}", flush=True)


def make_matrix(rows: int, columns: int) -> np.ndarray:
    """Returns a float32 matrix with singular values 1, 1/2, 1/3, …"""
    rng = np.random.default_rng(0)
    size = min(rows, columns)
    left, right = (np.linalg.qr(rng.standard_normal((side, size)))[0] for side in (rows, columns))
    return ((left / np.arange(1, size + 1)) @ right.T).astype(np.float32)


def iterate_float64(matrix: np.ndarray, config: RuleConfig) -> np.ndarray:
    x = torch.from_numpy(matrix).double()
    with WHOLE:
        return in_torch.iterate(x, config, x.dtype).numpy()


def prepare_jax(matrix: np.ndarray, config: RuleConfig, gram: bool) -> tuple[Callable[[], Any], str]:
    """Returns a function that calls one form, and a description of its compilation."""
    x = jnp.asarray(matrix)
    form = jax.jit(
        partial(in_jax.iterate, config=config, dtype=x.dtype, gram=gram),
        compiler_options=celo2.compiler_options(),
    )
    times = [measure_compilation(form, x) for _ in range(5)]
    compiled: Any = form.lower(x).compile()
    note = f"{compiled.as_text().count(' = ')}, {1e3 * min(times):.0f}"
    return lambda: compiled(x).block_until_ready(), note


def measure_compilation(form: Any, x: jax.Array) -> float:
    """Returns XLA's CPU time in seconds, without any cache."""
    jax.clear_caches()
    lowered = form.lower(x)
    start = time.process_time()
    lowered.compile()
    return time.process_time() - start


def prepare_torch(matrix: np.ndarray, config: RuleConfig, gram: bool) -> tuple[Callable[[], Any], str]:
    """Returns a function that calls one form; the plain form does not halve symmetric products either."""
    x = torch.from_numpy(matrix)
    form = partial(in_torch.iterate, x, config, x.dtype, gram=gram)
    return (form if gram else WHOLE(form)), ""


def measure(forms: tuple[Callable[[], Any], ...]) -> list[float]:
    """Returns the median CPU time of each form in seconds; the forms are called in turn."""
    times: list[list[float]] = [[] for _ in forms]
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for form, own in zip(forms, times, strict=True):
            start = time.process_time()
            form()
            own.append(time.process_time() - start)
    return [statistics.median(own) for own in times]


if __name__ == "__main__":
    main()
