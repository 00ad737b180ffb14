"""PPO tasks on three MinAtar games (arXiv 1903.03176), in gymnax's implementation.

The settings are purejaxrl's for Space Invaders, used for all three games. The published run has 10⁷
environment steps: 1,220 rollouts, 39,040 gradient steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from celo2._utils.extras import require
from celo2.tasks.base import Params, Size, Task
from celo2.tasks.rl.ppo import PPOConfig, make_ppo
from celo2.tasks.rl.rollout import Environment

Game = Literal["asterix", "freeway", "space-invaders"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Settings of a size; a time limit of None means the game's own."""

    ppo: PPOConfig
    hidden: int
    time_limit: int | None


_SIZES: Mapping[Size, _Sizes] = {
    "tiny": _Sizes(
        ppo=PPOConfig(num_envs=8, rollout_length=16, epochs=2, minibatches=2), hidden=12, time_limit=100
    ),
    "small": _Sizes(
        ppo=PPOConfig(num_envs=16, rollout_length=64, epochs=4, minibatches=4), hidden=32, time_limit=500
    ),
    "full": _Sizes(ppo=PPOConfig(), hidden=64, time_limit=None),
}


def make_minatar_ppo(game: Game, *, size: Size = "full") -> Task:
    """Makes a PPO task on a game, with a separate actor and critic of two hidden layers each.

    The networks read the flattened observation.

    Args:
        game: Name of the game.
        size: `"full"` has 64 environments of 128 steps and hidden layers of 64; `"small"` 16 of 64 and 32,
            with episodes of at most 500 steps; `"tiny"` 8 of 16 and 12, with episodes of at most 100 steps.

    Raises:
        ImportError: gymnax or Flax is not installed.
    """
    require("eval", "flax", "gymnax", "six")
    from celo2.tasks.rl.actor_critic import ActorCritic

    sizes = _SIZES[size]
    environment = make_minatar(game, sizes.time_limit)
    network = ActorCritic(environment.num_actions, sizes.hidden)

    def init(key: Array) -> Params:
        observation = jax.eval_shape(environment.reset, jax.random.key(0))[1]
        return network.init(key, jnp.zeros((1, *observation.shape), observation.dtype))["params"]

    def policy(params: Params, observations: Array) -> tuple[Array, Array]:
        outputs: Any = network.apply({"params": params}, observations)
        return outputs

    return make_ppo(f"ppo-{game}", environment, jax.jit(init), policy, sizes.ppo)


def make_minatar(game: Game, time_limit: int | None = None) -> Environment:
    """Makes a game with minimal, non-sticky actions and binary 10 × 10 × C observations.

    Args:
        game: Name of the game.
        time_limit: Maximum steps of an episode; None: the game's own limit, 1,000 or (Freeway) 2,500.

    Raises:
        ImportError: gymnax is not installed.
    """
    require("eval", "gymnax", "six")
    from gymnax.environments.minatar.asterix import MinAsterix
    from gymnax.environments.minatar.freeway import MinFreeway
    from gymnax.environments.minatar.space_invaders import MinSpaceInvaders

    games = {"asterix": MinAsterix, "freeway": MinFreeway, "space-invaders": MinSpaceInvaders}
    played: Any = games[game]()
    settings = played.default_params
    limited = "" if time_limit is None else f", at most {time_limit} steps"
    if time_limit is not None:
        settings = settings.replace(max_steps_in_episode=time_limit)
    return Environment(
        name=f"{played.name}{limited}",
        reset=partial(_reset, played, settings),
        step=partial(_step, played, settings),
        num_actions=played.num_actions,
        max_steps=settings.max_steps_in_episode,
        origin=f"MinAtar's game (Young and Tian, 2019) as in gymnax {version('gymnax')}, Apache-2.0",
    )


def _reset(played: Any, settings: Any, key: Array) -> tuple[Any, Array]:
    with _usual_promotion():
        observation, state = played.reset(key, settings)
    return state, observation.astype(jnp.uint8)


def _step(
    played: Any, settings: Any, key: Array, state: Any, action: Array
) -> tuple[Any, Array, Array, Array]:
    """Takes a step; gymnax itself restarts finished episodes, and both kinds of end are treated alike."""
    with _usual_promotion():
        observation, state, reward, terminated, truncated, _ = played.step(key, state, action, settings)
    return state, observation.astype(jnp.uint8), reward.astype(jnp.float32), terminated | truncated


@contextlib.contextmanager
def _usual_promotion() -> Iterator[None]:
    """Restores JAX's default type promotion, which gymnax needs, even if the caller uses stricter rules."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


MINATAR_TASKS: Mapping[str, tuple[Callable[..., Task], str]] = {
    "ppo-asterix": (partial(make_minatar_ppo, "asterix"), "PPO on MinAtar's Asterix"),
    "ppo-freeway": (partial(make_minatar_ppo, "freeway"), "PPO on MinAtar's Freeway"),
    "ppo-space-invaders": (partial(make_minatar_ppo, "space-invaders"), "PPO on MinAtar's Space Invaders"),
}
"""Constructor and one-line summary of each task, by name."""
