"""Formulas of the predecessors that recorded runs do not pin, each against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from celo2 import zoo
from celo2.jax.accumulators import Accumulators, Leaf
from celo2.jax.dimensions import make_axes
from celo2.zoo import features, loss_features, nn_adam, rnn_mlp, velo
from celo2.zoo.loss_features import init_moments, training_features, update_moments
from celo2.zoo.specs import MLP14
from oracle.zoo_parts import LossBuffer, fraction

DTYPE = np.dtype(np.float32)
ROUNDING = 1e-7  # of a float64 sum over the smallest spread, 1e-8
NAMED_LOSSES = {
    "falling": [3.0, 2.0, 1.5, 1.2, 1.0],
    "rising": [1.0, 2.0, 3.0, 4.0, 5.0],
    "a leap is cut off": [1.0, 1.1, 1e6, 1.0, 0.9],
    "negative": [-1.0, -2.0, -3.0, 4.0, -5.0],
    "constant": [1.0] * 5,
}


@pytest.mark.parametrize("losses", NAMED_LOSSES.values(), ids=NAMED_LOSSES)
@pytest.mark.parametrize("horizon", [5, 1000])
def test_loss_features_follow_the_specification(losses: list[float], horizon: int) -> None:
    oracle = LossBuffer(horizon)
    with jax.enable_x64(True):
        buffer = loss_features.init_buffer(np.dtype(np.float64))
        for count, loss in enumerate(losses):
            found, buffer = loss_features.loss_features(
                buffer, jnp.asarray(loss), jnp.asarray(count, jnp.int32), horizon
            )
            np.testing.assert_allclose(found, oracle.update(loss), rtol=1e-9, atol=ROUNDING)
    assert not np.any(LossBuffer(horizon).update(losses[0]))


def test_leaping_loss_counts_as_twice_the_largest_mean() -> None:
    """One loss of 1 gives means of 1/(1 + δ), δ the decay, as the old mean has the next exponent."""
    one = jnp.asarray(1.0)
    buffer = loss_features.init_buffer(DTYPE)
    _, buffer = loss_features.loss_features(buffer, one, jnp.asarray(0, jnp.int32), 100)
    before = np.asarray(buffer.mean)
    _, buffer = loss_features.loss_features(buffer, 1e9 * one, jnp.asarray(1, jnp.int32), 100)
    decay = np.exp(-1.0 / np.logspace(1, 2, 10))
    added = (np.asarray(buffer.mean) - decay * before) / (1.0 - decay)
    np.testing.assert_allclose(added, 2.0 / (1.0 + decay.min()), rtol=1e-4)


def test_share_features_count_from_zero() -> None:
    for count in (0, 7, 30):
        found = loss_features.share_features(jnp.asarray(count, jnp.int32), 20, DTYPE)
        np.testing.assert_allclose(found, fraction(count, 20), rtol=1e-5)


def make_mlp(**outputs: float) -> dict[str, np.ndarray]:
    """A network whose outputs are constant: direction D and magnitude E."""
    weights = {name: np.zeros(shape, np.float32) for name, shape in MLP14.weight_shapes().items()}
    weights["b2"] = np.asarray([outputs["direction"], outputs["magnitude"], 9.0], np.float32)
    return weights


def zero_leaf(param: Any) -> tuple[Leaf, Any]:
    param = jnp.asarray(param, jnp.float32)
    zeros = jnp.zeros_like(param)
    return Leaf(zeros, param, Accumulators((zeros,) * 3, (zeros,), (zeros,) * 3, (zeros,) * 3)), make_axes(
        param.shape
    )


@pytest.mark.parametrize("magnitude", [0.0, 500.0, -500.0])
@pytest.mark.parametrize(
    ("param", "size"),
    [(np.zeros((2, 3)), math.sqrt(1e-9)), (np.full((2, 3), -3.0), 3.0)],
    ids=["zeros move", "by their size"],
)
def test_step_is_the_direction_times_size_and_exponential(
    param: np.ndarray, size: float, magnitude: float
) -> None:
    step = features.step_mlp14(make_mlp(direction=2.0, magnitude=magnitude), *zero_leaf(param))
    np.testing.assert_allclose(step, 0.001 * 2.0 * size * math.exp(0.001 * magnitude), rtol=1e-5)


def test_factors_have_floors() -> None:
    """With accumulators of zero the column factor is 1e-9 to the -1/2, and so is the row's."""
    leaf, axes = zero_leaf(np.ones((2, 3)))
    accumulators = leaf.accumulators._replace(
        row=(jnp.zeros((2, 1)),) * 3, col=(jnp.zeros((1, 3)),) * 3, momentum=(jnp.ones((2, 3)),) * 3
    )
    groups = features.compute(leaf._replace(accumulators=accumulators), axes, MLP14)
    np.testing.assert_allclose(groups["w0__13"][0], 1e9, rtol=1e-5)


def test_vectors_without_gradients_have_finite_features() -> None:
    leaf, axes = zero_leaf(np.ones(4))
    tiny = jnp.full(4, 1e-33)
    accumulators = leaf.accumulators._replace(row=(tiny,) * 3)
    groups = features.compute(leaf._replace(accumulators=accumulators), axes, MLP14)
    assert all(np.isfinite(channel).all() for group in groups.values() for channel in group)
    assert not groups["w0__13"][0].any()
    np.testing.assert_array_equal(groups["w0__9"][0], groups["w0__10"][0])


@pytest.mark.parametrize(
    ("shape", "position"),
    [((), 0), ((1,), 0), ((1, 17), 1), ((2, 1, 3, 2, 4), 4), ((2, 2, 2, 2, 2), None)],
    ids=str,
)
def test_velo_counts_axes_longer_than_one(shape: tuple[int, ...], position: int | None) -> None:
    leaf, _ = zero_leaf(np.ones(shape))
    rank = velo._statistics(leaf)[1:6]
    np.testing.assert_array_equal(rank, np.arange(5) == position)


def test_rnn_mlp_clips_to_ten_running_sizes() -> None:
    theta = zoo.init_theta("rnn_mlp", jax.random.key(0), lstm_size=2)
    memory = rnn_mlp.RULE.init(theta, zoo.PRESETS["rnn_mlp"], 1, DTYPE)
    grads, memory = rnn_mlp._clip([jnp.asarray([100.0, -3.0])], memory)
    np.testing.assert_allclose(grads[0], [10.0, -3.0], rtol=1e-4)
    size = 0.99 * 0.01 + 0.01 * math.sqrt((100.0 + 9.0) / 2.0)
    np.testing.assert_allclose(memory.clip_size, size, rtol=1e-4)
    bound = 10.0 * size / (1.0 - 0.99**2)
    grads, _ = rnn_mlp._clip([jnp.asarray([1e4])], memory)
    np.testing.assert_allclose(grads[0], bound, rtol=1e-4)


def test_rnn_mlp_judges_losses_by_the_training_mean() -> None:
    """The second feature compares 0 with the mean until there is a validation loss."""
    train, valid = update_moments(init_moments(DTYPE), jnp.asarray(2.0), 0.9), init_moments(DTYPE)
    variance = 0.1 * (0.2 - 2.0) ** 2 / 0.1
    loss = jnp.asarray(3.0)
    found = training_features(train, 0.9, loss, valid, 0.95)
    np.testing.assert_allclose(found, np.array([1.0, -2.0]) / math.sqrt(variance), rtol=1e-5)
    valid = update_moments(valid, jnp.asarray(2.5), 0.95)
    found = training_features(train, 0.9, loss, valid, 0.95)
    np.testing.assert_allclose(found, np.array([1.0, 0.5]) / math.sqrt(variance), rtol=1e-4)
    far = training_features(train, 0.9, 1e6 * loss, valid, 0.95)
    assert float(far[0]) == 5.0


def test_rnn_mlp_takes_validation_losses_without_a_step() -> None:
    theta = zoo.init_theta("rnn_mlp", jax.random.key(0), lstm_size=2)
    tx, params = zoo.make("rnn_mlp", weights=theta), {"w": jnp.ones(3)}
    start: Any = tx.init(params)
    updates: Any
    state: Any
    updates, state = tx.update(params, start, params, value=2.5, is_valid=True)
    assert not updates["w"].any()
    np.testing.assert_allclose(state.memory.valid.mean, 0.05 * 2.5, rtol=1e-6)
    assert int(state.accumulators.count) == 1
    expected = start._replace(
        memory=start.memory._replace(valid=state.memory.valid),
        accumulators=start.accumulators._replace(count=state.accumulators.count),
    )
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nn_adam_decodes_within_ranges() -> None:
    low, high = nn_adam._decode(jnp.asarray([[-9.0] * 4, [9.0] * 4]))
    np.testing.assert_allclose(low, [1e-8, 1 - math.exp(-10), 1 - math.exp(-10), 1e-11], rtol=1e-5)
    np.testing.assert_allclose(high, [1e3, 0.0, 0.0, 1e4], rtol=1e-5, atol=1e-7)
    start = np.asarray([[0.1 * math.log(y) for y in (1e-4, 0.1, 0.001, 1e-8)]], np.float32)
    np.testing.assert_allclose(nn_adam._encode(nn_adam._decode(jnp.asarray(start))), start, rtol=1e-4)


def one_step(name: str, theta: Any, grad: float, **options: Any) -> float:
    tx = zoo.make(name, weights=theta, **options)
    params = {"w": jnp.ones(1)}
    updates: Any
    updates, _ = tx.update({"w": jnp.full(1, grad)}, tx.init(params), params, value=1.0)
    return float(updates["w"][0])


@pytest.mark.parametrize("grad", [2.0, 1e6], ids=["plain", "clipped"])
def test_nn_adam_with_a_large_epsilon_is_momentum(grad: float) -> None:
    """lr (1 + ε) m / (ε + √v) with ε = 20, m = 0.1 g, v = 0.001 g², and g within ±1000."""
    theta = dict(zoo.init_theta("nn_adam", jax.random.key(0), lstm_size=2))
    theta["per_layer_epsilon"] = jnp.asarray(0.1 * math.log(20.0))
    clipped = min(grad, 1000.0)
    expected = 1e-4 * 21.0 * 0.1 * clipped / (20.0 + math.sqrt(0.001) * clipped)
    assert one_step("nn_adam", theta, grad) == pytest.approx(-expected, rel=1e-4)


def test_celo_adam_steps_a_tenth_of_a_thousandth() -> None:
    theta = jax.tree.map(jnp.zeros_like, zoo.init_theta("celo_adam", jax.random.key(0), lstm_size=2))
    assert one_step("celo_adam", theta, 3.0, num_steps=10) == pytest.approx(-1e-4, rel=1e-4)


def constant_velo(rate: float, shares: float) -> dict[str, jax.Array]:
    """VeLO whose networks say D = 2, E = 0 and whose heads say these numbers."""
    theta = jax.tree.map(jnp.zeros_like, zoo.init_theta("velo", jax.random.key(0), lstm_size=2, num_mlps=2))
    direction = theta["ff_mod_stack/~/b2"].at[:, 0].set(2.0)
    return theta | {
        "ff_mod_stack/~/b2": direction,
        "rnn_params/step_size/b": jnp.asarray([rate]),
        "rnn_params/rnn_to_controls/b": jnp.asarray([shares, shares]),
    }


def test_velo_takes_the_mean_of_unbounded_shares_and_a_signed_rate() -> None:
    """Two networks with share 3 each average to 3 times one; ff_mult multiplies it; λ = -2 turns the sign."""
    step = one_step("velo", constant_velo(-2.0, 3.0), 1.0, num_steps=10, ff_mult=5.0)
    assert step == pytest.approx(2.0 * 0.001 * 2.0 * 3.0 * 5.0, rel=1e-4)


def test_celo_averages_shares_that_sum_to_one() -> None:
    """Two equal networks are half as strong as one, and λ is 0.1 where the head says 0."""
    theta = jax.tree.map(jnp.zeros_like, zoo.init_theta("celo", jax.random.key(0), lstm_size=2, num_mlps=2))
    theta["ff_mod_stack/~/b2"] = theta["ff_mod_stack/~/b2"].at[:, 0].set(2.0)
    step = one_step("celo", theta, 1.0, num_steps=10)
    assert step == pytest.approx(-0.1 * 0.001 * 2.0 / 2.0, rel=1e-4)
