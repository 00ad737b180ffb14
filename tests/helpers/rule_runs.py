"""Recorded runs of the rule: the reference's (../shared/conformance/rule), some of them reduced, and our own.

The latter two are in `parity/golden/`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracle import rule

Array = NDArray[np.floating]
Leaves = dict[str, Array]

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"

REFERENCE_RUNS = (
    "base_default",
    "bias_correction",
    "celo2_default",
    "celo2_mixed",
    "decays_two",
    "features_subset",
    "features_subset2",
    "gradients_huge",
    "gradients_sparse",
    "gradients_tiny",
    "gradients_zero",
    "hidden16_layers1",
    "magnitude",
    "magnitude_aggregated",
    "no_normalize_input",
    "param_scale_mult",
    "precondition_output",
    "rms_decay_0999",
    "rmsmult",
    "tanh_hidden4",
)

NOT_OPTIONS = ("learning_rate", "steps", "gradients")  # keys of config_json about the run, not the rule


@dataclass(frozen=True)
class Run:
    """One recorded run. `params[t]`, `grads[t]` and `updates[t]` are flat dicts of leaves."""

    options: dict[str, Any]
    theta: Leaves
    params: list[Leaves]
    grads: list[Leaves]
    updates: list[Leaves]

    def select(self, names: Collection[str]) -> Run:
        """The same run with some of the leaves only."""

        def chosen(record: list[Leaves]) -> list[Leaves]:
            return [{name: leaves[name] for name in names} for leaves in record]

        return Run(self.options, self.theta, *map(chosen, (self.params, self.grads, self.updates)))


def load_run(path: Path) -> Run:
    """Reads a run of either origin; they have one format."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    config = json.loads(str(arrays["config_json"]))
    options = {key: value for key, value in config.items() if key not in NOT_OPTIONS}

    def leaves(prefix: str) -> Leaves:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    def steps(kind: str) -> list[Leaves]:
        return [leaves(f"{kind}/{t}/") for t in range(config["steps"])]

    return Run(options, leaves("theta/"), steps("params"), steps("grads"), steps("updates"))


def load_reference(shared: Path, name: str) -> Run:
    """Reads a whole run of the reference."""
    return load_run(shared / "conformance" / "rule" / f"{name}.npz")


def load_reduced(name: str) -> Run:
    """Reads a reduced run of the reference."""
    return load_run(GOLDEN / f"reference_{name}.npz")


def replay_oracle(run: Run) -> list[Leaves]:
    """The oracle's updates at every step, given the recorded parameters and gradients."""
    options = rule.make_options(run.options)
    states = {name: rule.init(param.shape, options) for name, param in run.params[0].items()}
    updates = []
    for params, grads in zip(run.params, run.grads, strict=True):
        step: Leaves = {}
        for name, grad in grads.items():
            step[name], states[name] = rule.update(run.theta, states[name], grad, params[name], options)
        updates.append(step)
    return updates
