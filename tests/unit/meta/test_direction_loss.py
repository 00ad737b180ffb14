"""The direction loss: how far the rule's steps point away from those of an expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.baselines import register_optimizer
from celo2.config import RuleConfig
from celo2.jax import orthogonalize
from celo2.jax.transform import scale_by_celo2
from celo2.meta import outer, pes
from celo2.meta.config import MetaConfig, Variant
from celo2.meta.inner import optimizer as optimizer_module
from celo2.meta.inner.expert import (
    MAX_DIRECTION_LOSS,
    DirectionLossState,
    compute_direction_loss,
    make_expert,
    with_direction_loss,
)
from celo2.meta.inner.optimizer import make_inner_optimizer
from celo2.meta.inner.theta import init_theta
from celo2.meta.inner.unroll import InnerState, Losses, init_pairs, make_family, unroll
from celo2.meta.run.folder import RunFiles
from celo2.tasks.families.base import TaskData

pytestmark = pytest.mark.usefixtures("standard_promotion", "small_meta_rule")

CONFIG = MetaConfig(
    variant="celo2-base",
    families=("regression",),  # two matrices and two vectors
    datasets=("digits",),
    tasks_per_set=2,
    truncation_length=1,
    min_unroll=50,
    max_unroll=50,
    batch_size=4,
    level="none",
    expert="sgdm",
    expert_weight=0.5,
)
ROUNDING = 1e-6  # of the cosine of a few hundred float32


def _draw(seed: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"kernel": (4, 6), "head": (3, 8), "bias": (5,)}
    return {
        name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _register(name: str, direction: optax.GradientTransformation, sign: int) -> None:
    def make(rate: Any, weight_decay: float) -> optax.GradientTransformation:
        del weight_decay
        return optax.chain(direction, optax.scale(sign * rate))

    register_optimizer(name, make)


@pytest.mark.parametrize(
    ("variant", "sign", "expected"),
    [("celo2", -1, 0.0), ("celo2-base", 1, 2.0)],
    ids=["celo2-same", "celo2-base-opposite"],
)
def test_expert_that_is_the_rule_is_at_no_distance_and_its_opposite_at_the_largest(
    variant: Variant, sign: int, expected: float
) -> None:
    """Over three steps, so that the expert needs its state; Celo2's vectors do not count."""
    theta = init_theta(jax.random.key(0), MetaConfig(variant=variant))
    rule = scale_by_celo2(theta, orthogonalize=variant == "celo2")
    _register("the-rule", rule, sign)
    config = dataclasses.replace(CONFIG, variant=variant, expert="the-rule")
    optimizer, params = make_inner_optimizer(theta, config), _draw(0)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for seed in range(1, 4):
        _, state = update(_draw(seed), state, params)
        assert isinstance(state, DirectionLossState)
        assert float(state.loss) == pytest.approx(expected, abs=ROUNDING)
        assert len(state.expert) == (2 if variant == "celo2" else 3)


ONES = np.ones(2, np.float32)
UP = np.array([0.0, 1.0], np.float32)
RIGHT = np.array([1.0, 0.0], np.float32)


@pytest.mark.parametrize(
    ("steps", "wanted", "expected"),
    [
        ([RIGHT], [UP], 1.0),
        ([3e25 * RIGHT], [1e-25 * RIGHT], 0.0),  # their squares are no float32
        ([RIGHT, RIGHT], [-RIGHT, 7 * RIGHT], 1.0),
        ([ONES, RIGHT], [RIGHT, RIGHT], 0.5 - 0.5 * np.sqrt(0.5)),
        ([0 * RIGHT, RIGHT], [RIGHT, RIGHT], 0.5),
        ([0 * RIGHT], [0 * RIGHT], 1.0),
        ([RIGHT, RIGHT], [np.inf * ONES, RIGHT], MAX_DIRECTION_LOSS),
        ([np.nan * RIGHT], [RIGHT], MAX_DIRECTION_LOSS),
    ],
    ids=["orthogonal", "far-sizes", "one-opposite", "mean", "one-zero", "zeros", "infinite", "nan"],
)
def test_direction_loss_is_one_minus_the_mean_cosine(steps: list, wanted: list, expected: float) -> None:
    found = jax.jit(compute_direction_loss)(steps, wanted)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(expected, abs=ROUNDING)


def test_muon_orthogonalizes_heads_and_embeddings_as_the_rule_does() -> None:
    """By their names it would leave them to AdamW."""

    def orthogonalize_each(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda grad: -orthogonalize.compute(grad, RuleConfig()), updates)

    rule = optax.with_extra_args_support(optax.stateless(orthogonalize_each))
    optimizer = with_direction_loss(rule, make_expert("muon"), lambda _: True)
    grads = {name: {"kernel": _draw(0)["kernel"]} for name in ("head", "embedding")}
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    assert isinstance(state, DirectionLossState)
    assert float(state.loss) == pytest.approx(0.0, abs=ROUNDING)


# Inner runs of a rule that compiles fast: momentum, theta's factors on both halves of the last axis.


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(theta: pes.Theta, config: MetaConfig) -> optax.GradientTransformationExtraArgs:
        first, second = 1.0 + theta["b2"][0], theta["b2"][1] - 1.0

        def turn(array: jax.Array) -> jax.Array:
            is_first = jnp.arange(array.shape[-1]) < array.shape[-1] // 2
            return jnp.broadcast_to(jnp.where(is_first, first, second), array.shape) * array

        by_theta = optax.stateless(lambda tree, _: jax.tree.map(turn, tree))
        rule = optax.chain(optax.trace(0.5), by_theta, optax.scale(-config.inner_learning_rate))
        return optax.with_extra_args_support(rule)

    monkeypatch.setattr(optimizer_module, "_make_celo2", make)


SETS = jnp.zeros(CONFIG.num_pairs, jnp.int32)
KEYS = jax.random.split(jax.random.key(3), 2 * CONFIG.num_pairs).reshape(2, -1)  # of each step
Step = Callable[[InnerState, jax.Array], tuple[InnerState, Losses]]


def _thetas() -> pes.Theta:
    theta = init_theta(jax.random.key(0), CONFIG)
    return pes.antithetic(theta, pes.sample_perturbations(jax.random.key(2), theta, 0.1, CONFIG.num_pairs))


def _start(config: MetaConfig) -> InnerState:
    theta, keys = init_theta(jax.random.key(0), config), jax.random.split(jax.random.key(1), config.num_pairs)
    return jax.jit(partial(init_pairs, config=config, family="regression"))(keys, theta)._replace(step=SETS)


def _make_step(config: MetaConfig, thetas: pes.Theta) -> Step:
    run = partial(unroll, thetas, set_index=SETS, data=None, config=config, family="regression")
    return jax.jit(lambda state, keys: run(state, keys))


def _make_gradients(config: MetaConfig) -> Callable[[InnerState, jax.Array], list[jax.Array]]:
    """The gradients of a step, `(pairs, 2, …)`, from the batches that it draws."""
    family = make_family(config, "regression")

    def gradients(state: InnerState, keys: jax.Array) -> list[jax.Array]:
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.split(key)[1], 0))(keys)
        if config.meta_loss == "held-out":
            keys = jax.vmap(lambda key: jax.random.split(key)[0])(keys)
        batches = family.make_batches(family.sample_draws(keys, None, SETS), None, state.problem)
        both = jax.vmap(jax.grad(family.loss), in_axes=(0, None, None))
        return jax.tree.leaves(jax.vmap(both)(state.params, state.scales, batches))

    return jax.jit(gradients)


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize(
    "options",
    [
        {"variant": "celo2"},
        {"variant": "celo2-base", "meta_loss": "held-out", "loss_scale": "log"},
    ],
    ids=["celo2", "celo2-base-held-out-log"],
)
def test_losses_are_those_without_an_expert_and_its_weighted_direction_loss(options: dict) -> None:
    """The expert is SGD with momentum 0.9, here in NumPy; the second step shows its state."""
    config = dataclasses.replace(CONFIG, **options)
    thetas, gradients = _thetas(), _make_gradients(config)
    plain = _make_step(dataclasses.replace(config, expert="", expert_weight=0.0), thetas)
    judged = _make_step(config, thetas)
    state = _start(config)
    alone = state._replace(opt_state=state.opt_state.rule)
    momentum: list[Any] = [0.0] * 4
    for keys in KEYS:
        momentum = [
            0.9 * m + np.asarray(g, float) for m, g in zip(momentum, gradients(alone, keys), strict=True)
        ]
        before = jax.tree.leaves(alone.params)
        (state, losses), (alone, expected) = judged(state, keys), plain(alone, keys)
        jax.tree.map(np.testing.assert_array_equal, state.params, alone.params)
        moves = [
            np.asarray(new - old) for new, old in zip(jax.tree.leaves(alone.params), before, strict=True)
        ]
        pairs = zip(moves, momentum, strict=True)
        cosines = [_cosine(u, -v) for u, v in pairs if u.ndim == 4 or config.variant == "celo2-base"]
        distances = config.expert_weight * (1 - np.mean(cosines, axis=0))
        assert np.ptp(distances) > 1e-3
        for name, distance in zip(("positive", "negative"), distances.T, strict=True):
            added = getattr(losses, name)[0] - getattr(expected, name)[0]
            np.testing.assert_allclose(added, distance, atol=1e-5)  # parameters and losses are rounded
        for name in ("diverged", "weight", "is_last"):
            np.testing.assert_array_equal(getattr(losses, name), getattr(expected, name))


def _cosine(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The cosine for each run, `(pairs, 2)`."""
    axes = tuple(range(2, one.ndim))
    return (one * two).sum(axes) / np.sqrt((one**2).sum(axes) * (two**2).sum(axes))


@pytest.mark.usefixtures("halves")
def test_steps_that_are_not_finite_are_at_the_largest_distance() -> None:
    """Beside the losses of diverged runs, which are clipped and counted."""
    step = _make_step(CONFIG, jax.tree.map(lambda array: jnp.full_like(array, jnp.nan), _thetas()))
    state, _ = step(_start(CONFIG), KEYS[0])
    state, losses = step(state, KEYS[1])
    np.testing.assert_array_equal(state.opt_state.loss, MAX_DIRECTION_LOSS)
    ceiling = make_family(CONFIG, "regression").loss_ceiling
    np.testing.assert_allclose(losses.positive[0], ceiling + CONFIG.expert_weight * MAX_DIRECTION_LOSS)
    np.testing.assert_array_equal(losses.diverged, 2)


@pytest.mark.usefixtures("halves")
def test_meta_gradient_leads_to_the_expert_and_a_resumed_run_goes_on_with_its_state(tmp_path: Path) -> None:
    """The expert goes up the gradient, where the loss alone would never lead."""
    _register("ascent", optax.trace(0.9), 1)
    config = dataclasses.replace(
        CONFIG,
        families=("quadratic",),
        tasks_per_set=16,
        expert="ascent",
        expert_weight=100.0,
        inner_learning_rate=1e-4,
        sigma=0.05,
        outer_optimizer="adam",
        outer_learning_rate=0.1,
        frozen=("w*", "b0", "b1"),
    )
    mesh = outer.make_mesh()
    outer_steps = outer.make_outer_steps(config, mesh)
    state, _ = outer_steps(outer.init(config, mesh), TaskData(), 1)
    first = float(state.inner[0].opt_state.loss.mean())
    with RunFiles(tmp_path / "run") as files:
        files.start(config, resume=False)
        files.save(state, config, {})
        state, _ = outer_steps(state, TaskData(), 20)
        restored = files.restore(config, mesh)
    assert float(state.inner[0].opt_state.loss.mean()) < 0.5 * first
    assert restored is not None
    resumed, _ = outer_steps(restored, TaskData(), 20)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))


def test_derivative_at_a_step_of_zero_is_finite() -> None:
    """The cosine of another array decides alone."""
    one = [jnp.zeros((2, 3)), jnp.asarray([1.0, 2.0])]
    two = [jnp.ones((2, 3)), jnp.asarray([2.0, 1.0])]
    zero, other = jax.grad(lambda steps: compute_direction_loss(steps, two))(one)
    assert np.isfinite(zero).all()
    cosine = 0.5 * (2.0 - 0.8 * 1.0) / 5  # of the first number: (v/‖v‖ - cos u/‖u‖) / ‖u‖ over two arrays
    np.testing.assert_allclose(other[0], -cosine, rtol=1e-6)
