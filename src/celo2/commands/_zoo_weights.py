"""What `celo2 weights` says of weights of the predecessors."""

from __future__ import annotations

import dataclasses
import json

from celo2.zoo.specs import MEMBERS
from celo2.zoo.weights import ZooWeights, fitting_presets

ZOO_OPTIONS = frozenset(field.name for member in MEMBERS.values() for field in dataclasses.fields(member))


def print_zoo(weights: ZooWeights) -> None:
    """The options, the names to use the weights by, and what the optimizer needs."""
    options = dataclasses.asdict(weights.config)
    print("\noptions (? assumed: the file does not carry it)")
    for name, value in options.items() or [("none", "")]:
        assumed = "?" if options and name not in weights.stated else " "
        print(f" {assumed} {name:26}{value}")
    needs = {"loss": "the loss at each step", "num_steps": "the length of the run"}
    needed = [needs[name] for name in sorted(weights.config.needs)]
    print(f"   needs                     {' and '.join(needed) or 'gradients and parameters only'}")
    names = ", ".join(fitting_presets(weights)) or f"{weights.kind}, with the options above"
    print(f"   celo2.zoo.make            {names}")


def print_assumed(weights: ZooWeights) -> None:
    """The options that neither the file nor the caller has said, if any."""
    assumed = {
        name: v for name, v in dataclasses.asdict(weights.config).items() if name not in weights.stated
    }
    if assumed:
        options = ", ".join(f"{name}={json.dumps(value)}" for name, value in assumed.items())
        print(f"options assumed: {options}. The file does not carry them; set others with --set.")


def zoo_set_flags(weights: ZooWeights) -> str:
    """The `--set` flags of what arrays do not tell and is not the default."""
    told = weights.config.sizes_of(weights.config.weight_shapes())
    changed = {
        field.name: value
        for field in dataclasses.fields(weights.config)
        if field.name not in told and (value := getattr(weights.config, field.name)) != field.default
    }
    return " ".join(f"--set {name}={json.dumps(value)}" for name, value in changed.items())
