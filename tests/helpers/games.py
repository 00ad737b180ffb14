"""A game without chance for the tests of agents: what happens depends on the number of steps alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.rl.rollout import Environment

EPISODE = 3  # steps


def make_counting_game() -> Environment:
    """Step n, from 0, shows and rewards n; every episode has three steps."""

    def observe(count: Array) -> Array:
        return count.astype(jnp.float32)[None]

    def reset(key: Array) -> tuple[Array, Array]:
        count = jnp.zeros((), jnp.int32)
        return count, observe(count)

    def step(key: Array, count: Array, action: Array) -> tuple[Array, Array, Array, Array]:
        after = count + 1
        return after, observe(after), count.astype(jnp.float32), after % EPISODE == 0

    return Environment("counting", reset, step, num_actions=2, max_steps=EPISODE)


def make_button_game() -> Environment:
    """Two buttons, one of which is right; the lamp (of two) that is lit says which. Four steps."""

    def observe(lamp: Array) -> Array:
        return jax.nn.one_hot(lamp, 2)

    def reset(key: Array) -> tuple[tuple[Array, Array], Array]:
        lamp = jax.random.randint(key, (), 0, 2)
        return (jnp.zeros((), jnp.int32), lamp), observe(lamp)

    def step(key: Array, state: tuple[Array, Array], action: Array):
        count, lamp = state
        reward = (action == lamp).astype(jnp.float32)
        lamp = jax.random.randint(key, (), 0, 2)
        return ((count + 1) % 4, lamp), observe(lamp), reward, count == 3

    return Environment("buttons", reset, step, num_actions=2, max_steps=4)
