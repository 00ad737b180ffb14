"""Environments, rollouts of a policy, and advantages.

Source: generalised advantage estimation, arXiv 1506.02438, equations 11 and 16. Time limits are treated
like any other end of an episode: the value after them is zero, as in the public PPO code of the tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Params

Policy = Callable[[Params, Array], tuple[Array, Array]]
"""`(params, observations (E, ...)) → logits of the actions (E, A), values of the states (E,)`."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """An environment as pure functions of a single copy.

    Attributes:
        name: Name shown in results.
        reset: `key → (state, observation)`.
        step: `(key, state, action) → (state, observation, reward, done)`. Where `done`, the episode is over,
            and the state and observation already belong to the next one.
        num_actions: Number of actions; actions are in [0, `num_actions`).
        max_steps: Maximum length of an episode.
        origin: One sentence on the source and licence of the game.
    """

    name: str
    reset: Callable[[Array], tuple[Any, Array]]
    step: Callable[[Array, Any, Array], tuple[Any, Array, Array, Array]]
    num_actions: int
    max_steps: int
    origin: str = ""


class Actors(NamedTuple):
    """States of E copies of an environment in the middle of their episodes.

    Attributes:
        state: States of the environments, `(E, ...)` each.
        observation: Observations on which the next actions are based, `(E, ...)`.
        episode_return: Sum of the episode's rewards so far, `(E,)`.
    """

    state: Any
    observation: Array
    episode_return: Array


class Transition(NamedTuple):
    """Steps of E copies, `(E,)` each, or `(T, E)` for T steps.

    Attributes:
        observation: Observation before the action, `(E, ...)`.
        action: Chosen action, int32.
        log_prob: Log probability of the action under the policy that chose it.
        value: The critic's value of the state before the action.
        reward: Reward of the action.
        done: Whether the action ended the episode.
        episode_return: Sum of the episode's rewards, including this one.
    """

    observation: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    done: Array
    episode_return: Array


def start_actors(environment: Environment, key: Array, num_envs: int) -> Actors:
    """Starts the first episode of every copy."""
    state, observation = jax.vmap(environment.reset)(jax.random.split(key, num_envs))
    return Actors(state, observation, jnp.zeros(num_envs, jnp.float32))


def play_steps(
    environment: Environment, policy: Policy, params: Params, actors: Actors, key: Array, steps: int
) -> tuple[Actors, Transition]:
    """Plays a number of steps with actions sampled from the policy.

    Returns:
        The actors afterwards, and the transitions `(steps, E, ...)`.
    """

    def step(actors: Actors, key: Array) -> tuple[Actors, Transition]:
        return _play_step(environment, policy, params, actors, key)

    return jax.lax.scan(step, actors, jax.random.split(key, steps))


def play_episodes(
    environment: Environment, policy: Policy, params: Params, key: Array, num_envs: int
) -> Array:
    """Returns the mean return of a new episode in each of `num_envs` copies, `()`; actions are sampled."""
    start_key, play_key = jax.random.split(key)
    actors = start_actors(environment, start_key, num_envs)

    def unfinished(carry: tuple[Actors, Array, Array, Array]) -> Array:
        _, finished, _, count = carry
        return ~finished.all() & (count < environment.max_steps)

    def step(carry: tuple[Actors, Array, Array, Array]) -> tuple[Actors, Array, Array, Array]:
        actors, finished, returns, count = carry
        actors, played = _play_step(environment, policy, params, actors, jax.random.fold_in(play_key, count))
        returns = jnp.where(finished, returns, played.episode_return)
        return actors, finished | played.done, returns, count + 1

    carry = (actors, jnp.zeros(num_envs, bool), jnp.zeros(num_envs, jnp.float32), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, step, carry)[2].mean()


def mean_finished_return(played: Transition, otherwise: Array) -> Array:
    """Averages the returns of episodes that ended in these transitions; returns `otherwise` if none did."""
    count = played.done.sum()
    total = jnp.where(played.done, played.episode_return, 0.0).sum()
    return jnp.where(count > 0, total / jnp.maximum(count, 1).astype(total.dtype), otherwise)


def compute_advantages(played: Transition, last_value: Array, discount: float, trace: float) -> Array:
    """Computes generalised advantages: how far each action exceeds the critic's expectation.

        δ_t = r_t + γ V_{t+1} (1 - done_t) - V_t,    A_t = δ_t + γ λ (1 - done_t) A_{t+1}

    Args:
        played: Transitions, `(T, E)`.
        last_value: Values of the states after the last transitions, `(E,)`.
        discount: γ, in [0, 1].
        trace: λ, in [0, 1].

    Returns:
        The advantages, `(T, E)`.
    """

    def step(carry: tuple[Array, Array], played: Transition) -> tuple[tuple[Array, Array], Array]:
        advantage, next_value = carry
        goes_on = jnp.where(played.done, 0.0, discount)
        error = played.reward + goes_on * next_value - played.value
        advantage = error + goes_on * trace * advantage
        return (advantage, played.value), advantage

    return jax.lax.scan(step, (jnp.zeros_like(last_value), last_value), played, reverse=True)[1]


def _play_step(
    environment: Environment, policy: Policy, params: Params, actors: Actors, key: Array
) -> tuple[Actors, Transition]:
    action_key, step_key = jax.random.split(key)
    logits, value = policy(params, actors.observation)
    action = jax.random.categorical(action_key, logits)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=-1)[:, 0]
    step_keys = jax.random.split(step_key, len(action))
    state, observation, reward, done = jax.vmap(environment.step)(step_keys, actors.state, action)
    episode_return = actors.episode_return + reward
    played = Transition(actors.observation, action, log_prob, value, reward, done, episode_return)
    return Actors(state, observation, jnp.where(done, 0.0, episode_return)), played
