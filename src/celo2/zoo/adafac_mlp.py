"""AdaFac-MLP: a learned per-parameter rule with time features as inputs and learned decays.

Source: arXiv 2203.11860 and its public code, "small_fc_lopt".

    p ← p - 0.001 o₀ exp(0.001 o₁),   β = 1 - (1 - β₀) exp(10 θ)

with the outputs o of a network 39 → 4 → 4 → 2, whose inputs are twelve of Celo2's feature groups, 28
channels, and `tanh(t/a - 1)` for eleven times a. It needs neither the loss nor the run's length, and does not
clip gradients.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from celo2.jax import accumulators as accumulators_lib
from celo2.jax import mlp
from celo2.jax.accumulators import Leaf
from celo2.zoo.features import PRE_STEP, RMS_EPS, compute, normalize
from celo2.zoo.lstm import Theta
from celo2.zoo.rule import STANDARD, Decays, Outcome, Rule, Step
from celo2.zoo.specs import MLP12, AdafacMlp

TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)  # steps
DECAY_SCALE = 10.0  # factor of a learned decay's logarithm


def _init(theta: Theta, config: AdafacMlp, tensors: int, dtype: jnp.dtype) -> tuple[()]:  # noqa: ARG001
    return ()


def _update(theta: Theta, config: AdafacMlp, step: Step) -> Outcome:  # noqa: ARG001
    dtype = step.loss.dtype
    decays, weights = learned_decays(theta, dtype), _weights(theta, step.count, dtype)
    changes, states = [], []
    for leaf, axes in zip(step.leaves, step.axes, strict=True):
        state = accumulators_lib.update(leaf.accumulators, leaf.grad, axes, decays)
        groups = compute(Leaf(leaf.grad, leaf.param, state), axes, MLP12, diagonal_eps=RMS_EPS)
        scales = mlp.input_scales(groups, normalize)
        direction, magnitude = mlp.compute(groups, scales, weights, MLP12)
        assert magnitude is not None
        changes.append(-PRE_STEP * direction * jnp.exp(MLP12.exp_mult * magnitude))
        states.append(state)
    return Outcome(changes, states, ())


def learned_decays(theta: Theta, dtype: jnp.dtype) -> Decays:
    """Returns the decays encoded in theta. Momentum decays may leave [0, 1]; the others are clipped."""

    def decode(start: tuple[float, ...], name: str) -> Array:
        shift = jnp.exp(DECAY_SCALE * jnp.asarray(theta[name], dtype))
        return 1.0 - (1.0 - jnp.asarray(start, dtype)) * shift

    momentum, rms, adafactor = (
        decode(start, name)
        for start, name in zip(STANDARD, ("momentum_decays", "rms_decays", "adafactor_decays"), strict=True)
    )
    bounded = (tuple(jnp.clip(decay, 0.0, 1.0)) for decay in (rms, adafactor))
    return Decays(tuple(momentum), *bounded)


def _weights(theta: Theta, count: Array, dtype: jnp.dtype) -> dict[str, Any]:
    """Returns the arrays for `mlp.compute`: the first layer split by group, its time part in the bias."""
    first = theta["nn/~/w0"]
    weights: dict[str, Any] = {name: theta[f"nn/~/{name}"] for name in ("w1", "b1", "w2", "b2")}
    at = 0
    for name, feature in MLP12.feature_groups(2):
        rows = MLP12.num_channels(feature)
        weights[name] = first[at : at + rows]
        at += rows
    time = jnp.tanh(count.astype(dtype) / jnp.asarray(TIMES, dtype) - 1.0)
    passed = jnp.matmul(time, jnp.asarray(first[at:], dtype), precision="highest")
    weights["b0"] = jnp.asarray(theta["nn/~/b0"], dtype) + passed
    return weights


RULE = Rule(STANDARD, _init, _update)
