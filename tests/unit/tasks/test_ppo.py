"""PPO: its loss by hand, when it plays and learns from what, and that agents learn."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.base import Task
from celo2.tasks.rl.actor_critic import ActorCritic
from celo2.tasks.rl.ppo import (
    PPOConfig,
    PPOStream,
    compute_loss,
    judge_return,
    make_ppo,
)
from celo2.training.runner import run_grid
from helpers.games import make_button_game, make_counting_game

CONFIG = PPOConfig(num_envs=2, rollout_length=4, epochs=2, minibatches=2)


def table_policy(params, observations):
    """The network's outputs are the parameters themselves."""
    return params["logits"], params["value"]


def counting_policy(params, observations):
    return jnp.zeros((len(observations), 2)), params["weight"] * observations[:, 0]


STREAM = PPOStream(make_counting_game(), counting_policy, CONFIG)


def make_batch() -> tuple[dict, dict]:
    """Four transitions: ratios above, below and inside the bounds; values near and far from the old ones."""
    rng = np.random.default_rng(0)
    params = {"logits": rng.normal(size=(4, 3)), "value": np.array([1.0, -0.5, 0.3, 2.0])}
    action = np.array([0, 2, 1, 1])
    log_probs = params["logits"] - np.log(np.exp(params["logits"]).sum(-1, keepdims=True))
    ratio = np.array([1.5, 1.5, 0.5, 1.1])
    batch = {
        "observation": np.zeros((4, 1)),
        "action": action.astype(np.int32),
        "log_prob": log_probs[np.arange(4), action] - np.log(ratio),
        "value": np.array([0.5, -0.4, 0.2, 3.0]),
        "advantage": np.array([2.0, -1.0, -0.5, 0.7]),
        "target": np.array([2.0, 1.0, 0.0, 3.2]),
        "mean_return": np.array(3.0),
    }
    as_float32 = partial(jax.tree.map, lambda x: x.astype(np.float32) if x.dtype == np.float64 else x)
    return as_float32(params), as_float32(batch)


def loss_by_hand(params: dict, batch: dict) -> float:
    """The three parts, one transition after the other."""
    advantages = batch["advantage"]
    spread = math.sqrt(sum((a - advantages.mean()) ** 2 for a in advantages) / 4)
    actor = critic = entropy = 0.0
    for i in range(4):
        weights = [math.exp(x) for x in params["logits"][i]]
        probs = [w / sum(weights) for w in weights]
        ratio = probs[batch["action"][i]] / math.exp(batch["log_prob"][i])
        a = (advantages[i] - advantages.mean()) / (spread + 1e-8)
        actor -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a) / 4
        value, old, target = params["value"][i], batch["value"][i], batch["target"][i]
        near = old + min(max(value - old, -0.2), 0.2)
        critic += 0.5 * max((value - target) ** 2, (near - target) ** 2) / 4
        entropy -= sum(p * math.log(p) for p in probs) / 4
    return actor + 0.5 * critic - 0.01 * entropy


def test_loss_by_hand() -> None:
    params, batch = make_batch()
    found = jax.jit(partial(compute_loss, policy=table_policy, config=PPOConfig()))(params, batch)
    assert_allclose(found, loss_by_hand(params, batch), rtol=1e-5)


def test_gradient_stops_where_the_bounds_are_active() -> None:
    params, batch = make_batch()
    config = PPOConfig(entropy_weight=0.0)
    grads = jax.jit(jax.grad(partial(compute_loss, policy=table_policy, config=config)))(params, batch)
    moves = np.abs(np.asarray(grads["logits"])).max(-1) > 1e-6
    # Up with a ratio of 1.5, and down with one of 0.5: no further; the others still move.
    assert_array_equal(moves, [False, True, False, True])
    # The first and the last value are too far from the old one: one towards its target, one away from it.
    assert_array_equal(np.asarray(grads["value"]) != 0.0, [False, True, True, True])


def test_objective_is_minus_the_return_unless_the_loss_is_lost() -> None:
    batch = {"mean_return": jnp.float32(3.0)}
    assert judge_return(jnp.float32(0.1), batch) == -3.0
    for loss in (math.nan, math.inf, -math.inf):
        assert np.isnan(judge_return(jnp.float32(loss), batch))


def steps_of(stream: PPOStream, params, num_steps: int, seed: int = 0):
    """The states after, and the batches of, the first steps."""
    step = jax.jit(stream.next)
    state = jax.jit(stream.init)(params, jax.random.key(seed))
    states, batches = [], []
    for count in range(num_steps):
        state, batch = step(state, params, jax.random.key(100 + seed + count), jnp.int32(count))
        states.append(state)
        batches.append(jax.tree.map(np.asarray, batch))
    return states, batches


def test_plays_when_everything_was_used_in_each_epoch_and_not_before() -> None:
    _, batches = steps_of(STREAM, {"weight": jnp.float32(0.5)}, 9)
    seen = [batch["observation"][:, 0] for batch in batches]
    for rollout, first_step in enumerate((0, 4)):
        everything = np.repeat(4 * rollout + np.arange(4.0), 2)
        epochs = [np.concatenate(seen[at : at + 2]) for at in (first_step, first_step + 2)]
        for epoch in epochs:
            assert_array_equal(np.sort(epoch), everything)
    assert seen[8].min() >= 8  # the third rollout
    # Episodes of three steps that pay their number: 0+1+2; 3+4+5; then 6+7+8 and 9+10+11.
    assert [float(batch["mean_return"]) for batch in batches] == [3.0] * 4 + [12.0] * 4 + [25.5]


def test_epochs_have_orders_of_their_own_and_minibatches_the_whole_transition() -> None:
    config = PPOConfig(num_envs=4, rollout_length=16, epochs=2, minibatches=1)
    stream = PPOStream(make_counting_game(), counting_policy, config)
    _, (first, second) = steps_of(stream, {"weight": jnp.float32(0.5)}, 2)
    assert not np.array_equal(first["observation"], second["observation"])
    for batch in (first, second):
        assert_allclose(batch["value"], 0.5 * batch["observation"][:, 0])
        assert_allclose(batch["target"], batch["advantage"] + batch["value"], rtol=1e-6)


def test_return_is_carried_on_where_no_episode_ends_and_zero_before_any() -> None:
    config = PPOConfig(num_envs=2, rollout_length=2, epochs=1, minibatches=1)
    _, batches = steps_of(
        PPOStream(make_counting_game(), counting_policy, config), {"weight": jnp.float32(0.0)}, 5
    )
    # Ends after steps 2, 5 and 8 (from 0), where two steps are a rollout.
    assert [float(batch["mean_return"]) for batch in batches] == [0.0, 3.0, 12.0, 12.0, 21.0]


def test_new_rollouts_are_played_with_the_parameters_at_hand() -> None:
    (state, *_), _ = steps_of(STREAM, {"weight": jnp.float32(0.5)}, 1)
    other = {"weight": jnp.float32(-2.0)}
    step = jax.jit(STREAM.next)
    for count, weight in ((3, 0.5), (4, -2.0)):
        _, batch = step(state, other, jax.random.key(0), jnp.int32(count))
        assert_allclose(batch["value"], weight * batch["observation"][:, 0])


def test_validation_sees_lost_parameters() -> None:
    validate = jax.jit(STREAM.validate)
    assert validate({"weight": jnp.float32(1.0)}, jax.random.key(0)) == -3.0
    assert np.isnan(validate({"weight": jnp.float32(math.nan)}, jax.random.key(0)))


def test_rollouts_stay_behind_a_condition_under_vmap() -> None:
    params = {"weight": jnp.zeros(3)}
    keys = jax.random.split(jax.random.key(0), 3)
    state = jax.eval_shape(jax.vmap(STREAM.init), params, keys)
    step = jax.vmap(STREAM.next, in_axes=(0, 0, 0, None))
    equations = jax.make_jaxpr(step)(state, params, keys, jnp.int32(0)).eqns
    assert [equation.primitive.name for equation in equations].count("cond") == 1
    assert "scan" not in [equation.primitive.name for equation in equations]  # only inside of it


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs must be at least 1"), ({"minibatches": 3}, "must divide .* = 8192, got 3")],
)
def test_config_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**options)


def make_button_task() -> Task:
    network = ActorCritic(num_actions=2, hidden=8)
    config = PPOConfig(num_envs=8, rollout_length=8, epochs=2, minibatches=2)

    def policy(params: Any, observations: jax.Array) -> Any:
        return network.apply({"params": params}, observations)

    return make_ppo(
        "buttons",
        make_button_game(),
        jax.jit(lambda key: network.init(key, jnp.zeros((1, 2)))["params"]),
        policy,
        config,
    )


@pytest.mark.usefixtures("standard_promotion")
def test_an_agent_learns_under_adam() -> None:
    task = make_button_task()
    grid = run_grid(task, optax.adam, (1e-2,), seeds=(0, 1), steps=160, num_evals=4)
    assert grid.train_loss.shape == (1, 2, 160)
    assert_allclose(grid.train_loss[..., :4].mean(), -2.0, atol=0.6)  # half of the four presses are right
    assert grid.final_train_loss.max() < -3.3
    assert grid.final_valid_loss.max() < -3.3
    assert not grid.diverged.any()


def test_network_starts_as_published() -> None:
    network = ActorCritic(num_actions=3, hidden=8)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 2, 6)))["params"]
    gains = {"layer_0": math.sqrt(2), "layer_1": math.sqrt(2), "head": None}
    for part, head_gain in (("actor", 0.01), ("critic", 1.0)):
        for name, gain in gains.items():
            kernel, bias = (np.asarray(params[part][name][leaf]) for leaf in ("kernel", "bias"))
            expected = (gain or head_gain) ** 2 * np.eye(kernel.shape[1])
            assert_allclose(kernel.T @ kernel, expected, atol=1e-5 * expected.max())
            assert not bias.any()
    outputs: Any = network.apply({"params": params}, jnp.ones((5, 2, 6), jnp.uint8))
    logits, values = outputs
    assert logits.shape == (5, 3)
    assert values.shape == (5,)
