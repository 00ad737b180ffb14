"""Meta-gradients in reverse mode: the derivatives of the losses that `unroll` measures, and their mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from celo2.meta import outer, pes, reverse
from celo2.meta.config import MetaConfig, MetaLoss
from celo2.meta.inner import unroll
from celo2.meta.inner.families import init_groups, load_datasets, set_index, stack_data, unroll_groups
from celo2.meta.inner.theta import init_theta
from celo2.meta.run import distributed
from celo2.tasks.families.images import ImageMLPFamily

pytestmark = pytest.mark.usefixtures("standard_promotion", "small_family")

CONFIG = MetaConfig(
    rule_options=("ff_hidden_size=2", "initial_momentum_decays=[0.9]", "initial_adafactor_decays=[0.9]"),
    datasets=("digits",),
    tasks_per_set=3,
    batch_size=8,
    truncation_length=6,
    min_unroll=6,
    max_unroll=12,
    level="none",
    reverse_steps=4,
)
NUM_PAIRS = CONFIG.num_pairs
STEP = 1e-7  # of central differences: their error is of order STEP² and, in float64, 1e-16 / STEP
TOLERANCE = 1e-5  # relative


@pytest.fixture(scope="module")
def small_family() -> Iterator[None]:
    """Perceptrons of one layer, which compile faster."""

    def make(config: MetaConfig, name: str) -> Any:
        del name
        return ImageMLPFamily(widths=(64, 10), batch_size=config.batch_size, level=config.level)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unroll, "make_family", make)
        yield


class Found(NamedTuple):
    """Gradients of a recipe, along a random direction for each pair, and what differences say."""

    config: MetaConfig
    gradients: pes.Theta
    along: np.ndarray
    differences: np.ndarray


@pytest.fixture(
    scope="module",
    params=[
        {"frozen": ("w0__0", "b1")},
        {
            "variant": "celo2-base",
            "inner_learning_rate": 0.05,
            "inner_clip": 0.5,
            "meta_loss": "held-out",
            "loss_scale": "log",
        },
    ],
    ids=["celo2", "celo2-base"],
)
def found(request: pytest.FixtureRequest, small_family: None) -> Found:
    """In float64, of three runs in the middle, of which the first ends after two steps."""
    config = dataclasses.replace(CONFIG, **request.param)
    with jax.enable_x64(True):
        data = stack_data(load_datasets(config), config)
        theta, runs = _make_runs(config)
        (gradients,) = jax.jit(partial(reverse.compute_gradients, config=config))(theta, *runs, data)
        noise = pes.sample_perturbations(
            jax.random.key(3), theta, STEP, NUM_PAIRS, frozen=config.frozen_names
        )
        both = (pes.antithetic(theta, noise),)
        _, (losses,) = jax.jit(partial(unroll_groups, config=config))(both, *runs, data)
        assert losses.is_done[2].tolist() == [True, False, False]
        along = sum(jnp.sum((gradients[n] * noise[n]).reshape(NUM_PAIRS, -1), axis=1) for n in theta)
        mean_difference = (losses.positive - losses.negative)[: config.reverse_steps].mean(axis=0)
        return Found(config, jax.device_get(gradients), np.asarray(along), np.asarray(mean_difference) / 2)


def _make_runs(config: MetaConfig) -> tuple[pes.Theta, tuple[Any, ...]]:
    """Theta without biases of zero, at which a ReLU has no derivative; states, keys and sets of one group."""
    theta_key, noise_key, pairs_key, keys = jax.random.split(jax.random.key(0), 4)
    theta = init_theta(theta_key, config)
    noise = pes.sample_perturbations(noise_key, theta, 0.1, 1)
    theta = {name: array + noise[name][0] for name, array in theta.items()}
    (state,) = init_groups(jax.random.split(pairs_key, NUM_PAIRS), theta, config)
    state = state._replace(step=jnp.array([8, 3, 0]), length=jnp.array([10, 10, 10]))
    to_double = partial(jax.tree.map, lambda x: x.astype(float) if x.dtype == jnp.float32 else x)
    theta, state = to_double((theta, state))
    return theta, ((state,), (jax.random.split(keys, NUM_PAIRS),), set_index(config))


def test_gradients_are_the_differences_of_the_losses_that_unroll_measures(found: Found) -> None:
    assert np.abs(found.differences).min() > 1e-15 / TOLERANCE  # else roundings would be compared
    np.testing.assert_allclose(found.along, found.differences, rtol=TOLERANCE)


def test_frozen_arrays_and_unread_outputs_have_no_gradient(found: Found) -> None:
    for name, array in found.gradients.items():
        last = name in ("w2", "b2")
        assert array[..., :1].any() == (name not in found.config.frozen_names), name
        assert not last or not array[..., 1:].any(), name


WHOLE = dataclasses.replace(
    CONFIG, reverse_steps=0, estimator="full-reverse", loss_scale="log", inner_schedule="cosine", min_unroll=8
)


@pytest.mark.parametrize("meta_loss", ["end", "held-out"])
def test_gradients_of_whole_runs_are_the_differences_of_their_losses(
    small_family: None, meta_loss: MetaLoss
) -> None:
    config = dataclasses.replace(WHOLE, meta_loss=meta_loss, frozen=("w0__0",))
    with jax.enable_x64(True):
        data = stack_data(load_datasets(config), config)
        theta, (states, keys, sets) = _make_runs(config)
        differentiate = jax.jit(partial(reverse.differentiate_runs, config=config))
        (measured,), (gradients,) = differentiate(theta, keys, sets, data)
        noise = pes.sample_perturbations(
            jax.random.key(3), theta, STEP, NUM_PAIRS, frozen=config.frozen_names
        )
        both = (pes.antithetic(theta, noise),)
        (after,), (losses,) = jax.jit(partial(unroll_groups, config=config))(both, states, keys, sets, data)
        assert len(set(after.length.tolist())) > 1
        along = sum(jnp.sum((gradients[n] * noise[n]).reshape(NUM_PAIRS, -1), axis=1) for n in theta)
        differences = jnp.sum(losses.weight * (losses.positive - losses.negative), axis=0) / 2
        along, differences, gradients, measured, losses = jax.device_get(
            (along, differences, gradients, measured, losses)
        )
    assert np.abs(differences).min() > 1e-15 / TOLERANCE
    np.testing.assert_allclose(along, differences, rtol=TOLERANCE)
    np.testing.assert_allclose(measured.positive, (losses.positive + losses.negative) / 2, atol=1e-12)
    assert not gradients["w0__0"].any()
    assert not gradients["w2"][..., 1:].any()


def test_runs_of_a_family_have_a_similar_say_and_broken_ones_none() -> None:
    norms = np.array([1.0, 2.0, 4.0, 1e9, 0.0, np.nan])
    direction = np.array([0.6, 0.8])
    found = reverse.normalize({"v": jnp.asarray(norms[:, None] * direction, jnp.float32)})["v"]
    expected = np.array([0.5, 1.0, 1.0, 1.0, 0.0, 0.0])  # the median of the five numbers is 2
    np.testing.assert_allclose(found, expected[:, None] * direction, rtol=1e-6)
    exploded = reverse.normalize({"v": jnp.array([[1.0], [1e9]])})["v"]  # half of the runs
    np.testing.assert_allclose(exploded, 1.0, rtol=1e-6)
    for useless in (0.0, np.nan, np.inf):
        assert not reverse.normalize({"v": jnp.full((3, 2), useless)})["v"].any()


ES = np.array([[1.0, 2.0], [3.0, -2.0], [2.0, 6.0]])
REVERSE = np.array([[0.5, 1.0], [0.1, 2.0], [0.9, 1.5]])


def _combine(es: np.ndarray, backward: np.ndarray) -> np.ndarray:
    both = ({"v": jnp.asarray(gradients, jnp.float32)} for gradients in (es, backward))
    return np.asarray(reverse.combine(*both)[0]["v"])


def _expect(es: np.ndarray, backward: np.ndarray) -> np.ndarray:
    weights = [len(g) / g.var(axis=0, ddof=1) for g in (es, backward)]
    return (weights[0] * es.mean(axis=0) + weights[1] * backward.mean(axis=0)) / sum(weights)


def test_weights_are_inverse_variances_of_the_means() -> None:
    np.testing.assert_allclose(_combine(ES, REVERSE), _expect(ES, REVERSE), rtol=1e-6)


def test_share_is_the_mean_weight_of_what_varies() -> None:
    variances = [g.var(axis=0, ddof=1) for g in (ES, REVERSE)]
    both = ({"v": jnp.asarray(np.c_[g, np.zeros(3)], jnp.float32)} for g in (ES, REVERSE))
    share = float(reverse.combine(*both)[1])
    assert share == pytest.approx(np.mean(variances[0] / (variances[0] + variances[1])), rel=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_pair_that_is_not_finite_is_missing_in_all_numbers(broken: float) -> None:
    backward = REVERSE.copy()
    backward[1, 0] = broken
    np.testing.assert_allclose(_combine(ES, backward), _expect(ES, REVERSE[[0, 2]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("es", "backward", "expected"),
    [
        (ES, REVERSE * [[1.0], [np.nan], [np.nan]], ES.mean(axis=0)),
        (ES, REVERSE * 1e25, ES.mean(axis=0)),
        (ES * 0.0, REVERSE * 0.0, np.zeros(2)),
        (ES, REVERSE * [1.0, 0.0], [_expect(ES, REVERSE)[0], 0.0]),
        (ES, REVERSE * 0.0, ES.mean(axis=0)),
        (ES * 0.0, REVERSE, np.zeros(2)),
        (ES * [[1.0], [np.nan], [1.0]], REVERSE, np.full(2, np.nan)),
    ],
    ids=[
        "one pair left",
        "overflow",
        "frozen",
        "no effect",
        "all at the ceiling",
        "not perturbed",
        "broken estimate",
    ],
)
def test_combination_where_a_variance_is_zero_or_unknown(
    es: np.ndarray, backward: np.ndarray, expected: np.ndarray
) -> None:
    np.testing.assert_allclose(_combine(es, backward), expected, rtol=1e-6)


def test_pairs_of_all_groups_are_joined_in_their_order() -> None:
    parts = [{"v": jnp.full((number, 2), number)} for number in (3, 1)]
    np.testing.assert_array_equal(reverse.join_gradients(parts)["v"][:, 0], [3, 3, 3, 1])


SHARDED = dataclasses.replace(
    CONFIG,
    rule_options=("ff_hidden_size=3", *CONFIG.rule_options[1:]),
    variant="celo2-base",
    tasks_per_set=4,
    sigma=0.1,  # and a rate at which the losses of a pair differ by more than the last digits of either
    inner_learning_rate=0.05,
    start="adam",
    outer_optimizer="sgd",
    outer_learning_rate=1.0,
)
SUMS = 1e-5  # the sums over pairs are taken in another order


@pytest.fixture(scope="module")
def changes(small_family: None, standard_promotion: None) -> list[pes.Theta]:
    """The meta-gradients, with the opposite sign, of one iteration on one and on two devices."""
    return [_change_theta(SHARDED, num_devices)[0] for num_devices in (1, 2)]


def _change_theta(config: MetaConfig, num_devices: int) -> tuple[pes.Theta, outer.OuterMetrics]:
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (outer.PAIRS,), axis_types=(AxisType.Auto,))
    data = distributed.replicate(stack_data(load_datasets(config), config), mesh)
    state = outer.init(config, mesh)
    before = jax.device_get(state.theta)
    after, metrics = outer.make_outer_steps(config, mesh)(state, data, 1)
    assert int(metrics.skipped[0]) == 0
    change = {name: np.asarray(after.theta[name]) - array for name, array in before.items()}
    return change, jax.tree.map(lambda values: values[0], metrics)


def test_meta_gradient_does_not_depend_on_the_number_of_devices(changes: list[pes.Theta]) -> None:
    one, two = (np.concatenate([np.ravel(array) for array in change.values()]) for change in changes)
    assert np.linalg.norm(two - one) < SUMS * np.linalg.norm(one)


def test_whole_runs_on_two_devices_give_the_same_gradient_and_metrics(small_family: None) -> None:
    config = dataclasses.replace(SHARDED, reverse_steps=0, estimator="full-reverse", meta_loss="end")
    (change, metrics), (other, others) = (_change_theta(config, num_devices) for num_devices in (1, 2))
    one, two = (np.concatenate([np.ravel(array) for array in each.values()]) for each in (change, other))
    assert 0.1 < np.linalg.norm(one) <= 1.0  # the pairs' gradients are normalised
    assert np.linalg.norm(two - one) < SUMS * np.linalg.norm(one)
    np.testing.assert_allclose(metrics.meta_loss, others.meta_loss, rtol=SUMS)
    assert int(metrics.ended_runs) == config.num_pairs
    assert int(metrics.diverged_runs) == 0
    np.testing.assert_allclose(metrics.signal_to_noise, others.signal_to_noise, rtol=10 * SUMS)


def test_weights_without_an_effect_of_first_order_are_left_alone(changes: list[pes.Theta]) -> None:
    """Nothing reads the third unit at this start: evolution strategies would move its inputs at random."""
    for name in (f"w0__{group}" for group in range(14)):
        assert not changes[0][name][:, 2].any(), name
        assert changes[0][name][:, :2].any(), name
