"""Celo: a learned per-parameter rule with a learned schedule shared by all tensors.

Source: arXiv 2501.12670 and its public code.

    p ← p - λ S,   λ = 0.1 exp(step_size(h))                      h: an LSTM that sees the loss and the time
    S = 0.001 D sqrt(mean p² + 1e-9) exp(0.001 E)                 D, E: a network of 14 groups of features

The weights of several networks are averaged, `(1/N) Σ softmax(rnn_to_controls(h))_i W_i`. As this is a mean,
N equal networks are N times weaker than one. Phase 1 of meta-training has λ = 1 and no LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from celo2.jax import accumulators as accumulators_lib
from celo2.jax.accumulators import Leaf
from celo2.zoo import loss_features
from celo2.zoo.features import step_mlp14
from celo2.zoo.lstm import Theta, linear
from celo2.zoo.rule import STANDARD, Outcome, Rule, Step
from celo2.zoo.specs import MLP14, Celo


def stacked_weights(theta: Theta) -> dict[str, Any]:
    """Returns the arrays of the networks by name, each with a leading axis of networks."""
    return {name: theta[f"ff_mod_stack/~/{name}"] for name in MLP14.weight_shapes()}


def accumulate(step: Step) -> list[Leaf]:
    """Returns the tensors with clipped gradients and updated accumulators."""
    leaves = []
    for leaf, axes in zip(step.leaves, step.axes, strict=True):
        grad = accumulators_lib.clip(leaf.grad)
        leaves.append(
            Leaf(grad, leaf.param, accumulators_lib.update(leaf.accumulators, grad, axes, STANDARD))
        )
    return leaves


def _init(theta: Theta, config: Celo, tensors: int, dtype: jnp.dtype) -> Any:  # noqa: ARG001
    return loss_features.init_schedule(theta, dtype) if config.phase == 2 else ()


def _update(theta: Theta, config: Celo, step: Step) -> Outcome:
    leaves = accumulate(step)
    if config.phase == 1:
        rate, memory = 1.0, ()
        weights = _single(stacked_weights(theta))
    else:
        rate, memory = loss_features.step_schedule(theta, step.memory, step.loss, step.count, step.num_steps)
        weights = _average(theta, config, memory.lstm.hidden)
    changes = [-rate * step_mlp14(weights, leaf, axes) for leaf, axes in zip(leaves, step.axes, strict=True)]
    return Outcome(changes, [leaf.accumulators for leaf in leaves], memory)


def _average(theta: Theta, config: Celo, hidden: Array) -> Mapping[str, Any]:
    """Returns this step's weights; a single network has the share 1 whatever its head outputs."""
    stack = stacked_weights(theta)
    if config.num_mlps == 1:
        return _single(stack)
    shares = jax.nn.softmax(linear(theta, "rnn_params/rnn_to_controls", hidden))[0] / config.num_mlps
    return {
        name: jnp.tensordot(shares, jnp.asarray(array, shares.dtype), axes=1, precision="highest")
        for name, array in stack.items()
    }


def _single(stack: Mapping[str, Any]) -> dict[str, Any]:
    return {name: array[0] for name, array in stack.items()}


RULE = Rule(STANDARD, _init, _update)
