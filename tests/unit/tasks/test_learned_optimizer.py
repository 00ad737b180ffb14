"""The task whose parameters are a learned optimizer's: its update, its unrolled loss, its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from celo2 import zoo
from celo2.tasks.learned_optimizer import adafac_mlp
from celo2.tasks.learned_optimizer.task import (
    InnerTraining,
    compute_loss,
    init_theta,
    make_learned_optimizer,
)
from celo2.tasks.nn import cross_entropy
from celo2.tasks.vision.classifier import clip_or_ceiling
from celo2.tasks.vision.mlp import compute_mlp, init_mlp
from oracle.zoo import AdafacMlp

SHAPES = ((4, 6), (6,), (3, 3))
INNER = InnerTraining(steps=3, batch_size=8, widths=(64, 3, 10))
BOUND = 1.5 * math.log(10)


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def make_theta(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Weights large enough that a few updates tell, and decays that are not at their start."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(init_theta, jax.random.key(0))
    theta = {name: scale * rng.normal(size=leaf.shape) for name, leaf in sorted(shapes.items())}
    return theta | {name: 0.05 * array for name, array in theta.items() if name.endswith("decays")}


def make_batch(inner: InnerTraining, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    count = inner.steps * inner.batch_size
    return {
        "image": rng.integers(0, 256, (count, 8, 8), np.uint8),
        "label": rng.integers(0, 10, count, np.uint8),
        "key": np.asarray(jax.random.key_data(jax.random.key(seed))),
    }


def test_parameters_are_those_of_the_published_optimizer() -> None:
    task = make_learned_optimizer(size="tiny")
    theta = task.init(jax.random.key(0))
    assert {name: array.shape for name, array in theta.items()} == {
        "momentum_decays": (3,),
        "rms_decays": (1,),
        "adafactor_decays": (3,),
        "nn/~/w0": (39, 4),
        "nn/~/b0": (4,),
        "nn/~/w1": (4, 4),
        "nn/~/b1": (4,),
        "nn/~/w2": (4, 2),
        "nn/~/b2": (2,),
    }
    assert sum(array.size for array in theta.values()) == 197
    for name, array in theta.items():
        bound = 2.0 * len(array) ** -0.5 if "/w" in name else 0.0
        assert np.abs(array).max() <= bound
    assert_allclose(theta["nn/~/w0"].std(), 0.88 / math.sqrt(39), rtol=0.2)  # 156 numbers


@pytest.mark.usefixtures("double")
def test_update_equals_the_oracle_in_float64() -> None:
    rng = np.random.default_rng(1)
    theta = make_theta(2)
    network = {name.removeprefix("nn/~/"): array for name, array in theta.items()}
    oracle = AdafacMlp(theta | {"nn": {"~": network}}, SHAPES, steps=1)
    layout = adafac_mlp.Layout(SHAPES)
    params = [rng.normal(size=shape) for shape in SHAPES]
    vector = layout.join([jnp.asarray(param) for param in params])
    state = adafac_mlp.init_state(layout, jnp.dtype(np.float64))
    update = jax.jit(adafac_mlp.update, static_argnums=1)
    for step in range(4):
        grads = [10.0 ** (step - 2) * rng.normal(size=shape) for shape in SHAPES]
        changes = oracle.update(grads, params, 0.0)
        params = [param + change for param, change in zip(params, changes, strict=True)]
        vector, state = update(theta, layout, state, layout.join(list(map(jnp.asarray, grads))), vector)
        for param, found in zip(params, layout.split(vector), strict=True):
            assert_allclose(found, param, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("double")
def test_loss_is_that_of_training_with_the_optimizer_of_the_zoo() -> None:
    theta, batch = make_theta(3), make_batch(INNER)
    optimizer = zoo.make("adafac_mlp", weights=theta)

    @jax.jit
    def step(params, state, image, label):
        loss, grads = jax.value_and_grad(lambda params: cross_entropy(compute_mlp(params, image), label))(
            params
        )
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = init_mlp(jax.random.wrap_key_data(jnp.asarray(batch["key"])), INNER.widths)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    state, losses = optimizer.init(params), []
    for image, label in zip(np.split(batch["image"], 3), np.split(batch["label"], 3), strict=True):
        params, state, loss = step(params, state, image / 255.0, label)
        losses.append(float(loss))
    assert max(losses) - min(losses) > 1e-3  # the updates tell
    found = jax.jit(compute_loss, static_argnums=2)(theta, batch, INNER)
    # The transform keeps its accumulators in float32: a few of its roundings.
    # 3.4e-9: the transform keeps its accumulators in float32.
    assert_allclose(found, np.mean(losses), rtol=1e-8)


@pytest.mark.usefixtures("double")
def test_gradient_goes_through_every_update() -> None:
    theta, batch = make_theta(4), make_batch(INNER)
    loss = jax.jit(compute_loss, static_argnums=2)
    grads = jax.jit(jax.grad(compute_loss), static_argnums=2)(theta, batch, INNER)
    rng = np.random.default_rng(5)
    width = 1e-6  # smaller than the distance to the next kink of a ReLU, larger than float64's rounding
    for name, array in theta.items():
        direction = rng.normal(size=array.shape)
        ahead, behind = (
            loss(theta | {name: array + sign * width * direction}, batch, INNER) for sign in (1, -1)
        )
        expected = (ahead - behind) / (2 * width)
        assert abs(expected) > 1e-7
        assert_allclose(np.sum(grads[name] * direction), expected, rtol=1e-4, err_msg=name)


def test_first_loss_is_before_any_update_and_the_key_draws_the_perceptron() -> None:
    inner = InnerTraining(steps=1, batch_size=8)
    batch = make_batch(inner)
    compute = jax.jit(compute_loss, static_argnums=2)
    losses = [compute(jax.tree.map(np.float32, make_theta(seed)), batch, inner) for seed in (1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != compute(
        jax.tree.map(np.float32, make_theta(1)), batch | {"key": np.asarray([7, 7], np.uint32)}, inner
    )


def test_an_optimizer_that_diverges_has_a_finite_loss() -> None:
    theta = jax.tree.map(np.float32, make_theta(6, scale=300.0))
    loss = jax.jit(compute_loss, static_argnums=2)(theta, make_batch(INNER), INNER)
    assert 2.5 < loss <= BOUND * 1.0001


def test_inner_losses_are_clipped_and_nan_becomes_the_ceiling() -> None:
    losses = jnp.array([math.nan, math.inf, -math.inf, 1.5, 4.0], jnp.float32)
    clipped = clip_or_ceiling(losses, 10)
    assert clipped.dtype == jnp.float32
    assert_allclose(clipped, [BOUND, BOUND, 0.0, 1.5, BOUND], rtol=1e-6)


def test_untrained_optimizer_scores_the_published_loss() -> None:
    task = make_learned_optimizer(size="full")
    assert task.batch_size == 6_400
    inner = InnerTraining(batch_size=16)  # a mean over fewer images is the same on average

    def score(key, images, labels):
        theta_key, batch_key, loss_key = jax.random.split(key, 3)
        index = jax.random.randint(batch_key, (inner.steps * inner.batch_size,), 0, len(labels))
        batch = {"image": images[index], "label": labels[index], "key": jax.random.key_data(loss_key)}
        return compute_loss(task.init(theta_key), batch, inner)

    images, labels = (jnp.asarray(task.dataset.train[name]) for name in ("image", "label"))
    losses = jax.jit(jax.vmap(score, (0, None, None)))(
        jax.random.split(jax.random.key(0), 20), images, labels
    )
    assert_allclose(losses.mean(), task.initial_loss, rtol=0.05)
    assert_allclose(losses.mean(), 2.254, rtol=0.05)  # the first point of the published curves
