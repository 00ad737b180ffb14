"""Proximal policy optimisation (PPO) as a task, with batches from rollouts of the network being trained.

Source: arXiv 1707.06347, as in purejaxrl's public code, whose settings for MinAtar are the defaults.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Dataset, Params, Task
from celo2.tasks.rl.rollout import (
    Actors,
    Environment,
    Policy,
    compute_advantages,
    mean_finished_return,
    play_episodes,
    play_steps,
    start_actors,
)

ADVANTAGE_EPS = 1e-8  # added to the standard deviation of a minibatch's advantages


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Sizes of rollouts and minibatches, and coefficients of the loss.

    Attributes:
        num_envs: Number of copies of the environment, E.
        rollout_length: Steps of each copy in a rollout, T.
        epochs: Number of passes over a rollout.
        minibatches: Number of minibatches per epoch, a divisor of E · T.
        discount: Discount factor γ.
        trace: Trace decay λ of the advantages.
        clip: Maximum deviation ε of the probability ratio from 1, and of the value from the old value.
        entropy_weight: Weight of the policy's entropy.
        value_weight: Weight of the critic's loss.

    Raises:
        ValueError: A size is below 1, or the minibatches do not divide the rollout.
    """

    num_envs: int = 64
    rollout_length: int = 128
    epochs: int = 4
    minibatches: int = 8
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    entropy_weight: float = 0.01
    value_weight: float = 0.5

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for name in ("num_envs", "rollout_length", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_transitions % self.minibatches:
            raise ValueError(
                f"minibatches must divide num_envs · rollout_length = {self.num_transitions}, "
                f"got {self.minibatches}."
            )

    @property
    def num_transitions(self) -> int:
        """The number of transitions in a rollout, E · T."""
        return self.num_envs * self.rollout_length

    @property
    def batch_size(self) -> int:
        """The number of transitions in a minibatch."""
        return self.num_transitions // self.minibatches

    @property
    def steps_per_rollout(self) -> int:
        """The number of gradient steps between two rollouts."""
        return self.epochs * self.minibatches


class PPOState(NamedTuple):
    """State of a `PPOStream`.

    Attributes:
        actors: The environments after the last rollout.
        rollout: `observation`, `action`, `log_prob`, `value`, `advantage` and `target` of its transitions,
            `(E · T, ...)` each.
        order: Transitions of each minibatch until the next rollout, `(epochs · minibatches, batch_size)`.
        mean_return: Mean return of the episodes that ended last, `()`; 0 before any has ended.
    """

    actors: Actors
    rollout: dict[str, Array]
    order: Array
    mean_return: Array


@dataclasses.dataclass(frozen=True)
class PPOStream:
    """Stream of minibatches from rollouts; see `celo2.tasks.base.Stream`.

    Attributes:
        environment: The environment.
        policy: The policy that acts in the environment.
        config: Sizes of rollouts and minibatches.
    """

    environment: Environment
    policy: Policy
    config: PPOConfig

    def init(self, params: Params, key: Array) -> PPOState:
        """Starts the environments with an empty rollout; step 0 plays the first."""
        config = self.config
        actors = start_actors(self.environment, key, config.num_envs)
        shapes = jax.eval_shape(self._play, params, actors, key, jnp.zeros(()))
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return empty._replace(actors=actors)

    def next(self, state: PPOState, params: Params, key: Array, count: Array) -> tuple[PPOState, Batch]:
        """Returns the minibatch of step `count`, from a new rollout if the last one is used up.

        The batch includes `mean_return`, `()`.
        """
        place = count % self.config.steps_per_rollout
        state = jax.lax.cond(
            place == 0,
            lambda state: self._play(params, state.actors, key, state.mean_return),
            lambda state: state,
            state,
        )
        batch = {name: array[state.order[place]] for name, array in state.rollout.items()}
        return state, batch | {"mean_return": state.mean_return}

    def validate(self, params: Params, key: Array) -> Array:
        """Returns the negated mean return of a new episode in each copy; NaN if a parameter is not finite."""
        mean_return = play_episodes(self.environment, self.policy, params, key, self.config.num_envs)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
        return jnp.where(finite, -mean_return, jnp.nan)

    def _play(self, params: Params, actors: Actors, key: Array, mean_return: Array) -> PPOState:
        """Plays a new rollout and draws an order for each epoch."""
        config = self.config
        play_key, order_key = jax.random.split(key)
        actors, played = play_steps(
            self.environment, self.policy, params, actors, play_key, config.rollout_length
        )
        _, last_value = self.policy(params, actors.observation)
        advantage = compute_advantages(played, last_value, config.discount, config.trace)
        rollout = {
            "observation": played.observation,
            "action": played.action,
            "log_prob": played.log_prob,
            "value": played.value,
            "advantage": advantage,
            "target": advantage + played.value,
        }
        flat = {
            name: array.reshape(config.num_transitions, *array.shape[2:]) for name, array in rollout.items()
        }
        permute = jax.vmap(lambda key: jax.random.permutation(key, config.num_transitions))
        order = permute(jax.random.split(order_key, config.epochs))
        order = order.reshape(config.steps_per_rollout, config.batch_size)
        return PPOState(actors, flat, order, mean_finished_return(played, mean_return))


def compute_loss(params: Params, batch: Batch, *, policy: Policy, config: PPOConfig) -> Array:
    """Computes the clipped objective of a minibatch.

        -mean min(ρ A, clip(ρ, 1 ± ε) A) + ½ w_v mean max((v - R)², (v_old + clip(v - v_old, ±ε) - R)²)
        - w_e mean entropy

    where ρ is the ratio of the action's probability to the old one, and A is standardised over the minibatch.

    Args:
        params: Parameters of the policy.
        batch: B transitions from `PPOStream.next`.
        policy: Actor and critic.
        config: Settings that include ε and the weights.

    Returns:
        The loss, `()`.
    """
    logits, value = policy(params, batch["observation"])
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, batch["action"][:, None], axis=-1)[:, 0]
    ratio = jnp.exp(chosen - batch["log_prob"])
    advantage = batch["advantage"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + ADVANTAGE_EPS)
    bounded = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    actor_loss = -jnp.minimum(ratio * advantage, bounded * advantage).mean()
    near = batch["value"] + jnp.clip(value - batch["value"], -config.clip, config.clip)
    errors = jnp.maximum(jnp.square(value - batch["target"]), jnp.square(near - batch["target"]))
    entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=-1).mean()
    return actor_loss + config.value_weight * 0.5 * errors.mean() - config.entropy_weight * entropy


def judge_return(loss: Array, batch: Batch) -> Array:
    """Returns the negated mean return of the episodes that ended last; NaN if the loss is not finite."""
    return jnp.where(jnp.isfinite(loss), -batch["mean_return"], jnp.nan)


def make_ppo(
    name: str,
    environment: Environment,
    init: Callable[[Array], Params],
    policy: Policy,
    config: PPOConfig,
) -> Task:
    """Makes a task from an environment and a policy, judged by the returns of its episodes.

    The loss depends on the transitions played and does not measure progress. Optimizers get its
    unclipped gradient: in the published settings, the clipping to a global norm of 0.5 and the linear
    learning-rate decay belong to Adam, not to the task.

    Args:
        name: The task's name.
        environment: The environment.
        init: `key → params`.
        policy: The network, `(params, observations) → (logits, values)`.
        config: Sizes of rollouts and minibatches, and coefficients of the loss.
    """
    return Task(
        name=name,
        dataset=Dataset(environment.name, {}, {}, environment.origin),
        init=init,
        loss=partial(compute_loss, policy=policy, config=config),
        batch_size=config.batch_size,
        initial_loss=math.inf,  # returns have no bound for comparison
        stream=PPOStream(environment, policy, config),
        objective=judge_return,
    )
