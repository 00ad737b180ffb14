"""Writes the golden runs beside this file, from the float64 oracle.

`PYTHONPATH=tests python tests/parity/golden/generate.py`

They cover ranks 0 to 5 and most options, in the format of the reference's runs, of which a checkout may have
only the reduced ones (`reference.py`). The oracle itself is held to the reference's runs. Inputs are stored
with the outputs: no test depends on what a random generator draws.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracle import rule

HERE = Path(__file__).resolve().parent
STEPS = 3
LEARNING_RATE = 0.01
SHAPES = {  # up to rank 4 some of the reference runs' shapes, so that one process compiles them once
    "scalar": (),
    "vector": (24,),
    "square": (12, 12),
    "stack": (3, 12, 10),
    "conv": (3, 3, 4, 8),
    "rank5": (2, 2, 1, 3, 4),
}
RUNS: dict[str, dict[str, Any]] = {
    "celo2": {},
    "base": {"orthogonalize": False},
    "bias_corrected": {
        "orthogonalize": False,
        "bias_correction": True,
        "initial_rms_decays": [0.9, 0.99, 0.5],
    },
    "subset": {
        "with_m": False,
        "with_fac_rsqrt": False,
        "with_fac_mom_mult": False,
        "initial_momentum_decays": [0.5],
        "initial_adafactor_decays": [0.9, 0.99],
        "mlp_activation": "tanh",
        "ff_hidden_size": 4,
        "ff_hidden_layers": 3,
    },
    "unnormalized": {
        "orthogonalize": False,
        "normalize_input": False,
        "normalize_output": False,
        "exp_mult": 0.1,
        "aggregate_mag": True,
        "param_scale_mult": True,
        "precondition_output": True,
        "rmsmult": 0.2,
    },
}


def make_run(options: dict[str, Any], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """One run: gradients of eight decades of magnitude, some beyond the clip, a tenth of them zero."""
    parsed = rule.make_options(options)

    def normal(shape: tuple[int, ...], scale: float = 1.0) -> NDArray[np.float32]:
        return np.asarray(scale * rng.standard_normal(shape), np.float32)

    theta = {name: normal(shape, 0.5) for name, shape in rule.weight_shapes(parsed).items()}
    params = {name: normal(shape, 0.3) for name, shape in SHAPES.items()}
    states = {name: rule.init(shape, parsed) for name, shape in SHAPES.items()}
    config = {**options, "learning_rate": LEARNING_RATE, "steps": STEPS}
    arrays: dict[str, NDArray[Any]] = {"config_json": np.asarray(json.dumps(config))}
    arrays |= {f"theta/{name}": value for name, value in theta.items()}
    for t in range(STEPS):
        for name, shape in SHAPES.items():
            grad = normal(shape, 10.0 ** rng.uniform(-4, 4)) * (rng.uniform(size=shape) > 0.1)
            grad = np.asarray(grad, np.float32)
            step, states[name] = rule.update(theta, states[name], grad, params[name], parsed)
            arrays[f"params/{t}/{name}"] = params[name]
            arrays[f"grads/{t}/{name}"] = grad
            arrays[f"updates/{t}/{name}"] = step.astype(np.float32)
            params[name] = np.asarray(params[name] - LEARNING_RATE * step, np.float32)
    return arrays


def main() -> None:
    """Writes one file for each of `RUNS`."""
    for index, (name, options) in enumerate(RUNS.items()):
        np.savez_compressed(HERE / f"{name}.npz", **make_run(options, np.random.default_rng(index)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
