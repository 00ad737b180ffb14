"""Theta, the learned weights: initial values (random, Adam-like, loaded) and conversion to weight files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.config import RuleConfig
from celo2.meta.config import MetaConfig
from celo2.meta.pes import Theta
from celo2.weights import checkpoint
from celo2.weights.checkpoint import AnyWeights
from celo2.zoo.registry import init_theta as init_predecessor

BUILT_IN = ("random", "adam")  # values of `MetaConfig.start` that are not weight files

ADAM_MIXTURE: Mapping[tuple[str, int], float] = {("normalized_momentum", 0): 0.5, ("normalized_grad", 0): 0.5}
"""The direction of the "adam" start: the mean of m₀.₉ · rsqrt(v) and g · rsqrt(v), each normalised like every
input. The gradient added to its momentum is Nesterov's term, as in NAdam."""


def init_theta(key: Array, config: MetaConfig) -> Theta:
    """Makes the weights before the first outer iteration, float32 arrays of `config.weight_shapes()`.

    "random": for a predecessor, see `celo2.zoo.init_theta`; for Celo2, truncated normal of scale 1/√fan_in
    and zero biases, where the first layer's fan-in is its number of channels over all groups (30 by default).
    "adam": the same, except that two units of each hidden layer carry an Adam direction with Nesterov
    momentum to the first output, and no other unit contributes to it yet. Anything else: see `load_start`.
    """
    if config.start == "random" and config.member is not None:
        return init_predecessor(config.variant, key)
    if config.start == "random":
        return _random_theta(key, config)
    if config.start == "adam":
        return mixture_theta(_random_theta(key, config), config.rule, ADAM_MIXTURE)
    return {name: jnp.asarray(array, jnp.float32) for name, array in load_start(config).arrays.items()}


def make_start(config: MetaConfig) -> AnyWeights[Any]:
    """Makes the initial weights of a recipe, with provenance."""
    theta_key, _ = jax.random.split(jax.random.key(config.seed))
    arrays = {name: np.asarray(array) for name, array in init_theta(theta_key, config).items()}
    return make_weights(arrays, config, {"made_by": f"start {config.start!r}, seed {config.seed}"})


def make_weights(
    arrays: Mapping[str, np.ndarray], config: MetaConfig, provenance: Mapping[str, str]
) -> AnyWeights[Any]:
    """Packs theta and its recipe as finished weights."""
    return checkpoint.make_weights(arrays, config.member or config.rule, provenance)


def load_start(config: MetaConfig) -> AnyWeights[Any]:
    """Loads the weights that `config.start` names, from which the recipe can continue.

    Raises:
        ValueError: They belong to another variant or have different options; Celo's phases share theirs.
        OSError: The file cannot be read.
    """
    source, schema = config.start, config.member or config.rule
    found = checkpoint.load_weights(source, AnyWeights).kind
    if found != schema.kind:
        raise ValueError(f"{source} has weights of {found!r}, expected {schema.kind!r}.")
    # Options that the recipe may choose: the variant, which public files do not state, and Celo's phase.
    chosen = {name: getattr(schema, name) for name in ("orthogonalize", "phase") if hasattr(schema, name)}
    weights = checkpoint.load_weights(source, AnyWeights, **chosen)
    if weights.config != schema:
        raise ValueError(f"{source} has other options than the recipe: {weights.config}.")
    return weights


def check_start(config: MetaConfig) -> None:
    """Checks that Celo's second phase starts from the weights of its first.

    Raises:
        ValueError: It does not; the message says what to do.
    """
    if config.phase == 2 and config.start in BUILT_IN:
        raise ValueError(
            "phase 2 trains the schedule of a finished rule; give the weights of phase 1: "
            "--start OUT/weights/celo-….safetensors."
        )


def _random_theta(key: Array, config: MetaConfig) -> Theta:
    shapes = config.rule.weight_shapes()
    first_fan_in = sum(shape[0] for name, shape in shapes.items() if name.startswith("w0__"))
    keys = jax.random.split(key, len(shapes))
    theta = {}
    for leaf_key, (name, shape) in zip(keys, shapes.items(), strict=True):
        fan_in = first_fan_in if name.startswith("w0__") else shape[0]
        normal = jax.random.truncated_normal(leaf_key, -2.0, 2.0, shape) / jnp.sqrt(float(fan_in))
        theta[name] = jnp.zeros(shape) if name.startswith("b") else normal
    return theta


def mixture_theta(theta: Theta, config: RuleConfig, mixture: Mapping[tuple[str, int], float]) -> Theta:
    """Sets the first output to an exact weighted sum of channels; no other unit contributes to it.

    Units 0 and 1 of each hidden layer become `relu(s)` and `relu(-s)`, output 0 their difference.

    Args:
        theta: Weights of the rule; entries that are not replaced by these units are kept.
        config: The rule's options.
        mixture: Weight of each channel, by feature and index within its group.

    Raises:
        ValueError: The rule lacks a channel or a second hidden unit.
    """
    theta = {name: jnp.asarray(array) for name, array in theta.items()}
    groups = {
        feature.name: (name, config.num_channels(feature)) for name, feature in config.feature_groups(2)
    }
    missing = [channel for channel in mixture if channel[1] >= groups.get(channel[0], ("", 0))[1]]
    if missing or config.ff_hidden_size < 2 or config.ff_hidden_layers < 1:
        raise ValueError(
            f"a mixture of {sorted(mixture)} needs these channels and a hidden layer of two units or more; "
            f"the rule lacks {sorted(missing) or 'units'}. Start at random weights instead."
        )
    for name, _ in groups.values():
        theta[name] = theta[name].at[:, :2].set(0.0)
    for (feature, channel), weight in mixture.items():
        name, _ = groups[feature]
        theta[name] = theta[name].at[channel, :2].set(jnp.array([weight, -weight]))
    signs = jnp.array([1.0, -1.0])
    last = config.ff_hidden_layers
    for layer in range(1, last):
        theta[f"w{layer}"] = theta[f"w{layer}"].at[:, :2].set(0.0).at[:2, :2].set(jnp.outer(signs, signs))
    theta[f"w{last}"] = theta[f"w{last}"].at[:, 0].set(0.0).at[:2, 0].set(signs)
    return theta
