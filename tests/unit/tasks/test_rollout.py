"""What an agent does: advantages, returns of episodes, and who plays with which random numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.rl.rollout import (
    Transition,
    compute_advantages,
    mean_finished_return,
    play_episodes,
    play_steps,
    start_actors,
)
from helpers.games import make_button_game, make_counting_game

GAME = make_counting_game()


def even_policy(params, observations):
    """Both actions alike; the value of a state is half of what it shows."""
    return jnp.zeros((len(observations), 2)), params * observations[:, 0]


def make_transition(**arrays) -> Transition:
    shape = np.shape(next(iter(arrays.values())))
    return Transition(**{name: jnp.zeros(shape) for name in Transition._fields} | arrays)


def test_advantages_by_hand_with_an_end_inside() -> None:
    played = make_transition(
        reward=jnp.float32([[1.0, 0.0], [2.0, 0.0], [4.0, 1.0]]),
        value=jnp.float32([[0.5, 0.1], [1.5, 0.2], [2.5, 0.3]]),
        done=jnp.asarray([[False, False], [True, False], [False, False]]),
    )
    found = compute_advantages(played, jnp.float32([3.0, 0.4]), discount=0.9, trace=0.5)
    # First copy: the end in the second step cuts off what comes behind it.
    third = 4.0 + 0.9 * 3.0 - 2.5
    second = 2.0 - 1.5
    first = 1.0 + 0.9 * 1.5 - 0.5 + 0.45 * second
    assert_allclose(found[:, 0], [first, second, third], rtol=1e-6)
    third = 1.0 + 0.9 * 0.4 - 0.3
    second = 0.9 * 0.3 - 0.2 + 0.45 * third
    first = 0.9 * 0.2 - 0.1 + 0.45 * second
    assert_allclose(found[:, 1], [first, second, third], rtol=1e-6)


def test_steps_record_what_was_seen_done_and_paid() -> None:
    actors = start_actors(GAME, jax.random.key(0), 2)
    actors, played = jax.jit(lambda actors: play_steps(GAME, even_policy, 0.5, actors, jax.random.key(1), 7))(
        actors
    )
    steps = np.arange(7.0)
    for copy in range(2):
        assert_array_equal(played.observation[:, copy, 0], steps)
        assert_array_equal(played.reward[:, copy], steps)
        assert_allclose(played.value[:, copy], 0.5 * steps)
        assert_array_equal(played.done[:, copy], [0, 0, 1, 0, 0, 1, 0])
        assert_array_equal(played.episode_return[:, copy], [0, 1, 3, 3, 7, 12, 6])
    assert_allclose(played.log_prob, np.log(0.5), rtol=1e-6)
    assert set(np.unique(played.action)) == {0, 1}
    assert_array_equal(actors.episode_return, [6, 6])  # goes on with the next rollout
    assert_array_equal(actors.observation, [[7], [7]])


@pytest.mark.parametrize(
    ("done", "expected"),
    [([[0, 1], [1, 0]], (2.0 + 3.0) / 2), ([[0, 0], [0, 1]], 4.0), ([[0, 0], [0, 0]], -7.0)],
    ids=["two", "one", "none"],
)
def test_mean_return_is_that_of_episodes_that_ended(done, expected: float) -> None:
    played = make_transition(
        done=jnp.asarray(done, bool), episode_return=jnp.float32([[1.0, 2.0], [3.0, 4.0]])
    )
    assert_allclose(mean_finished_return(played, jnp.float32(-7.0)), expected)


def test_fresh_episodes_count_once_each() -> None:
    assert jax.jit(lambda: play_episodes(GAME, even_policy, 0.5, jax.random.key(0), 3))() == 0 + 1 + 2


def test_a_key_gives_one_rollout_and_copies_differ() -> None:
    game = make_button_game()

    @jax.jit
    def play(key):
        start_key, play_key = jax.random.split(key)
        return play_steps(game, even_policy, 0.5, start_actors(game, start_key, 2), play_key, 16)[1]

    first, again, other = (play(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(assert_array_equal, first, again)
    assert not np.array_equal(first.action, other.action)
    assert not np.array_equal(first.action[:, 0], first.action[:, 1])
    assert not np.array_equal(first.observation[:, 0], first.observation[:, 1])
