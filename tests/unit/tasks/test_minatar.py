"""MinAtar's games as environments, and the sizes of the networks that play them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from celo2.tasks.registry import make_task
from celo2.tasks.rl import minatar
from celo2.tasks.rl.minatar import make_minatar, make_minatar_ppo
from celo2.tasks.rl.ppo import PPOConfig, PPOStream
from celo2.tasks.rl.rollout import play_steps, start_actors

PUBLISHED = {  # parameters, channels, actions, longest episode
    "asterix": (60_038, 4, 5, 1_000),
    "freeway": (98_308, 7, 3, 2_500),
    "space-invaders": (85_573, 6, 4, 1_000),
}
every_game = pytest.mark.parametrize("game", PUBLISHED)


@every_game
def test_published_sizes(game) -> None:
    count, channels, actions, longest = PUBLISHED[game]
    task = make_minatar_ppo(game)
    params = jax.eval_shape(task.init, jax.random.key(0))
    shapes = {
        f"{part}/{layer}": leaves["kernel"].shape
        for part, layers in params.items()
        for layer, leaves in layers.items()
    }
    first = (100 * channels, 64)
    assert shapes == {
        "actor/layer_0": first,
        "actor/layer_1": (64, 64),
        "actor/head": (64, actions),
        "critic/layer_0": first,
        "critic/layer_1": (64, 64),
        "critic/head": (64, 1),
    }
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
    stream = task.stream
    assert isinstance(stream, PPOStream)
    assert stream.environment.max_steps == longest
    assert stream.config == PPOConfig()
    assert stream.config.steps_per_rollout * 1_220 == 39_040
    assert task.batch_size == 1_024


@every_game
def test_tiny_sizes_have_few_parameters_and_say_what_is_limited(game) -> None:
    task = make_task(f"ppo-{game}@tiny")
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) <= 20_000
    assert task.name == f"ppo-{game}"
    assert task.dataset.name.endswith("-MinAtar, at most 100 steps")
    assert task.dataset.size("train") == 0


def even_policy(params, observations):
    return jnp.zeros((len(observations), params)), jnp.zeros(len(observations))


@every_game
def test_game_is_played_under_strict_promotion_and_ends_at_its_time_limit(game) -> None:
    _, channels, actions, _ = PUBLISHED[game]
    environment = make_minatar(game, time_limit=6)
    assert environment.num_actions == actions

    @jax.jit
    def play(key):
        actors = start_actors(environment, key, 2)
        return play_steps(environment, lambda *given: even_policy(actions, given[1]), None, actors, key, 8)

    actors, played = play(jax.random.key(0))
    assert played.observation.shape == (8, 2, 10, 10, channels)
    assert played.observation.dtype == jnp.uint8
    assert set(np.unique(played.observation)) == {0, 1}
    assert played.reward.dtype == jnp.float32
    # No one dies in so few steps, so that the limit alone ends the episode; the next one begins at once.
    assert_array_equal(np.flatnonzero(played.done[:, 0]), [5])
    assert_array_equal(actors.state.time, [2, 2])


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("truncated", [False, True])
def test_both_kinds_of_end_are_an_end(terminated: bool, truncated: bool) -> None:
    def step(key, state, action, settings):
        flags = jnp.asarray(terminated), jnp.asarray(truncated)
        return jnp.zeros((2, 2)), state, jnp.ones(()), *flags, {}

    *_, done = minatar._step(SimpleNamespace(step=step), None, jax.random.key(0), (), jnp.int32(0))
    assert bool(done) == (terminated or truncated)
