"""Actor-critic network in Flax: two separate perceptrons for the policy and the value."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class _Perceptron(nn.Module):
    hidden: int
    outputs: int
    head_gain: float

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        for layer in range(2):
            dense = _dense(self.hidden, math.sqrt(2.0), f"layer_{layer}")
            inputs = nn.relu(dense(inputs))
        return _dense(self.outputs, self.head_gain, "head")(inputs)


class ActorCritic(nn.Module):
    """Perceptrons `actor` and `critic` without shared layers: each has two hidden ReLU layers and a `head`.

    Initial kernels are orthogonal with gain √2 (the actor's head: 0.01, the critic's: 1); biases are zero.

    Attributes:
        num_actions: Number of outputs of the actor, A.
        hidden: Width of every hidden layer.
    """

    num_actions: int
    hidden: int = 64

    @nn.compact
    def __call__(self, observations: Array) -> tuple[Array, Array]:
        """Computes float32 logits `(N, A)` and values `(N,)` from observations `(N, ...)` of any dtype."""
        inputs = observations.reshape(len(observations), -1).astype(jnp.float32)
        logits = _Perceptron(self.hidden, self.num_actions, 0.01, name="actor")(inputs)
        values = _Perceptron(self.hidden, 1, 1.0, name="critic")(inputs)
        return logits, values[:, 0]


def _dense(features: int, gain: float, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.orthogonal(gain), name=name)
