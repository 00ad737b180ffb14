"""Celo-Adam: Adam with Celo's learned schedule.

Source: arXiv 2501.12670 and its public code.

    p ← p - 0.001 λ m̂ / (1e-8 + sqrt(v̂ + 1e-10)),   m̂ = m / (1 - 0.9^n),   v̂ = v / (1 - 0.999^n)

with the multiplier `λ` of `celo2.zoo.loss_features`: 0.1 if its head outputs 0, a learning rate of 1e-4.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from celo2.jax import accumulators as accumulators_lib
from celo2.zoo import loss_features
from celo2.zoo.lstm import Theta
from celo2.zoo.rule import Decays, Outcome, Rule, Step
from celo2.zoo.specs import CeloAdam

DECAYS = Decays((0.9,), (0.999,))
LEARNING_RATE = 0.001
EPS = 1e-8
ROOT_EPS = 1e-10


def adam_direction(momentum: Array, rms: Array, eps: ArrayLike) -> Array:
    """Returns `m / (ε + sqrt(v + 1e-10))`."""
    return momentum / (eps + jnp.sqrt(rms + ROOT_EPS))


def _init(theta: Theta, config: CeloAdam, tensors: int, dtype: jnp.dtype) -> loss_features.ScheduleState:  # noqa: ARG001
    return loss_features.init_schedule(theta, dtype)


def _update(theta: Theta, config: CeloAdam, step: Step) -> Outcome:  # noqa: ARG001
    rate, memory = loss_features.step_schedule(theta, step.memory, step.loss, step.count, step.num_steps)
    # First rounded to the accumulators' dtype, so that averages and their correction use equal decays.
    decays = Decays(*(tuple(jnp.asarray(decay, step.loss.dtype) for decay in part) for part in DECAYS))
    changes, states = [], []
    for leaf in step.leaves:
        grad = accumulators_lib.clip(leaf.grad)
        state = accumulators_lib.update_full(leaf.accumulators, grad, decays)
        unbiased = accumulators_lib.unbias(state, step.count + 1, decays)
        changes.append(-LEARNING_RATE * rate * adam_direction(unbiased.momentum[0], unbiased.rms[0], EPS))
        states.append(state)
    return Outcome(changes, states, memory)


RULE = Rule(DECAYS, _init, _update)
