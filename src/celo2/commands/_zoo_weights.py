"""Output of `celo2 weights` for weights of the optimizers in `celo2.zoo`."""

from __future__ import annotations

import dataclasses
import json

from celo2.zoo.specs import MEMBERS
from celo2.zoo.weights import ZooWeights, fitting_presets

ZOO_OPTIONS = frozenset(field.name for member in MEMBERS.values() for field in dataclasses.fields(member))


def print_zoo(weights: ZooWeights) -> None:
    """Prints the options, the inputs that the optimizer needs, and the presets that fit the weights."""
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
    """Prints the options that neither the file nor the caller states, if any."""
    assumed = {
        name: v for name, v in dataclasses.asdict(weights.config).items() if name not in weights.stated
    }
    if assumed:
        options = ", ".join(f"{name}={json.dumps(value)}" for name, value in assumed.items())
        print(f"options assumed: {options}. The file does not carry them; set others with --set.")


def zoo_set_flags(weights: ZooWeights) -> str:
    """Formats the `--set` flags of options that differ from the default and do not follow from the arrays."""
    told = weights.config.sizes_of(weights.config.weight_shapes())
    changed = {
        field.name: value
        for field in dataclasses.fields(weights.config)
        if field.name not in told and (value := getattr(weights.config, field.name)) != field.default
    }
    return " ".join(f"--set {name}={json.dumps(value)}" for name, value in changed.items())
