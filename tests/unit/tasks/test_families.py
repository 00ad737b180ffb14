"""Each task family by itself: size, untrained loss, training, augmentation, where batches come from."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.meta.config import MetaConfig
from celo2.meta.inner.families import load_datasets, stack_data
from celo2.tasks.families import FAMILIES
from celo2.tasks.families.base import UNTRAINED_LOSS, TaskData, TextData
from celo2.tasks.families.quadratic import QuadraticFamily, sample_rotation
from celo2.tasks.families.regression import RegressionFamily
from celo2.tasks.families.text import RecurrentFamily, TransformerFamily

pytestmark = pytest.mark.usefixtures("standard_promotion")

NUM_PARAMETERS = {
    "mlp": 2_410,
    "deep-mlp": 2_298,
    "conv": 1_418,
    "autoencoder": 2_408,
    "transformer": 10_960,
    "rnn": 10_592,
    "regression": 676,
    "quadratic": 512,
}
AFTER_200_STEPS = 0.75  # of the untrained loss, at most: Adam at 3e-3 reaches 0.03 to 0.55
RUNS, STEPS = 16, 200

every_family = pytest.mark.parametrize("name", FAMILIES)


class Trained(NamedTuple):
    """What a family's runs did: losses `(runs, steps)`, and the first one with augmentation, `(runs,)`."""

    losses: np.ndarray
    augmented: np.ndarray


@functools.cache
def data() -> TaskData:
    config = MetaConfig(families=tuple(FAMILIES), datasets=("digits", "mnist"))
    return stack_data(load_datasets(config), config)


@functools.cache
def train(name: str) -> Trained:
    """Adam without augmentation, vmapped over keys."""
    family = FAMILIES[name](level="none", batch_size=32)
    augmented = FAMILIES[name](level="parameter", scale_range=(0.1, 10.0))
    optimizer = optax.adam(3e-3)

    def run(key: jax.Array, shared) -> tuple[jax.Array, jax.Array]:
        problem_key, init_key, loop_key = jax.random.split(key, 3)
        source = family.sample_problem(problem_key) if family.source == "problem" else shared
        params, scales = family.init(init_key)

        def step(carry, index):
            params, state = carry
            batch = family.sample_batch(jax.random.fold_in(loop_key, index), source, jnp.int32(0))
            loss, grads = jax.value_and_grad(family.loss)(params, scales, batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(STEPS))[1]
        batch = family.sample_batch(jax.random.fold_in(loop_key, 0), source, jnp.int32(0))
        return losses, augmented.loss(*augmented.init(init_key), batch)

    keys = jax.random.split(jax.random.key(0), RUNS)
    return Trained(
        *map(np.asarray, jax.jit(jax.vmap(run, in_axes=(0, None)))(keys, data().of(family.source)))
    )


@every_family
def test_parameters_are_float32_of_the_stated_number(name: str) -> None:
    stored, scales = jax.eval_shape(FAMILIES[name](level="parameter").init, jax.random.key(0))
    leaves = jax.tree.leaves(stored)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == NUM_PARAMETERS[name]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert jax.tree.map(jnp.shape, scales) == jax.tree.map(jnp.shape, stored)


@every_family
def test_untrained_loss_is_the_common_one(name: str) -> None:
    first = train(name).losses[:, 0]
    assert first.dtype == np.float32
    assert first.shape == (RUNS,)
    # The mean over the runs; a teacher or a spectrum of its own spreads each run by up to 20 %.
    np.testing.assert_allclose(first.mean(), UNTRAINED_LOSS, rtol=0.05)
    assert FAMILIES[name]().loss_ceiling == pytest.approx(1.5 * UNTRAINED_LOSS)


@every_family
def test_adam_lowers_the_loss(name: str) -> None:
    losses = train(name).losses
    assert np.isfinite(losses).all()
    assert losses[:, -20:].mean() < AFTER_200_STEPS * UNTRAINED_LOSS
    assert len(np.unique(losses[:, 0])) == RUNS  # a key, a task


@every_family
def test_augmentation_leaves_the_first_loss_alone(name: str) -> None:
    trained = train(name)
    np.testing.assert_allclose(trained.augmented, trained.losses[:, 0], rtol=1e-4)  # roundings


def test_text_batches_stay_in_their_text() -> None:
    """Of two texts, 100 bytes of "a" and 20 of "b", where rows of 17 bytes begin at few places."""
    text = np.frombuffer(b"a" * 100 + b"b" * 20, np.uint8)
    two = TextData(jnp.asarray(text), jnp.array([0, 100]), jnp.array([100, 20]))
    family = TransformerFamily(batch_size=64 * 16)
    sample = jax.jit(family.sample_batch)
    for index, letter in enumerate("ab"):
        batch = sample(jax.random.key(0), two, jnp.int32(index))
        assert batch.shape == (64, 17)
        assert set(np.ravel(batch).tolist()) == {ord(letter)}


def test_text_batches_reach_both_ends() -> None:
    text = jnp.arange(20, dtype=jnp.uint8)
    one = TextData(text, jnp.array([0]), jnp.array([20]))
    batch = jax.jit(TransformerFamily(batch_size=64 * 16).sample_batch)(jax.random.key(0), one, jnp.int32(0))
    assert set(np.ravel(batch).tolist()) == set(range(20))


def test_text_loss_of_chance_is_that_of_ten_classes() -> None:
    """In a text of one byte, a head without weights knows nothing, and one with a bias knows all."""
    family = TransformerFamily()
    params = jax.jit(family.init_params)(jax.random.key(0))
    params["head"] = jax.tree.map(jnp.zeros_like, params["head"])
    batch = jnp.full((4, 17), 7)
    loss = jax.jit(family.compute_loss)
    assert float(loss(params, batch)) == pytest.approx(math.log(10))
    params["head"]["bias"] = params["head"]["bias"].at[7].set(100.0)
    assert float(loss(params, batch)) == pytest.approx(0.0, abs=1e-6)


def test_recurrent_network_reads_only_the_past() -> None:
    family = RecurrentFamily()
    params = jax.jit(family.init_params)(jax.random.key(0))
    tokens = jnp.arange(16)[None]
    compute = jax.jit(family.compute_logits)
    change = np.abs(np.asarray(compute(params, tokens) - compute(params, tokens.at[0, 5].set(200)))).max(-1)[
        0
    ]
    assert (change[:5] == 0).all()
    assert (change[5:8] > 0).all()


def test_teachers_answers_have_mean_square_one_and_its_noise() -> None:
    family = RegressionFamily(batch_size=4096)

    def measure(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        problem = family.sample_problem(key)
        noisy = family.sample_batch(jax.random.key(1), problem, jnp.int32(0))["y"]
        clean = family.sample_batch(jax.random.key(1), {**problem, "noise": 0.0}, jnp.int32(0))["y"]
        return jnp.mean(jnp.square(clean)), jnp.std(noisy - clean), problem["noise"]

    power, noise, stated = jax.jit(jax.vmap(measure))(jax.random.split(jax.random.key(0), 32))
    np.testing.assert_allclose(power, 1.0, rtol=0.2)  # standardised on 256 inputs, of 4 answers each
    np.testing.assert_allclose(noise, stated, rtol=0.05)
    assert stated.min() >= 0.0099
    assert stated.max() <= 0.301
    assert np.ptp(np.log(stated)) > 1.0


def test_quadratic_has_the_noise_as_its_floor_and_spectra_of_its_own() -> None:
    family = QuadraticFamily(batch_size=4096)

    def measure(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        problem = family.sample_problem(key)
        batch = family.sample_batch(jax.random.key(1), problem, jnp.int32(0))
        eigenvalues = jnp.linalg.eigvalsh(problem["root"] @ problem["root"].T)
        loss = family.compute_loss({"matrix": {"kernel": problem["optimum"]}}, batch)
        return loss, problem["noise"], eigenvalues

    loss, noise, eigenvalues = jax.jit(jax.vmap(measure))(jax.random.split(jax.random.key(0), 32))
    # Over the untrained loss, 1 + 0.8796²: standard deviation of a truncated normal, see layers.
    np.testing.assert_allclose(loss, UNTRAINED_LOSS * noise**2 / (1 + 0.8796**2), rtol=0.05)
    np.testing.assert_allclose(np.mean(eigenvalues, axis=1), 1.0, rtol=1e-4)
    condition = np.asarray(eigenvalues[:, -1] / eigenvalues[:, 0])
    assert condition.min() < 30 < 300 < condition.max() < 2e4


def test_rotations_are_orthogonal_and_know_no_axis() -> None:
    drawn = jax.jit(jax.vmap(lambda key: sample_rotation(key, 8)))(jax.random.split(jax.random.key(0), 2000))
    identity = np.broadcast_to(np.eye(8), drawn.shape)
    np.testing.assert_allclose(np.einsum("nij,nkj->nik", drawn, drawn), identity, atol=1e-5)
    # Every entry has mean square 1/8 and mean fourth power 3/80 if the distribution is uniform.
    for power, expected in ((2, 1 / 8), (4, 3 / 80)):
        values = np.asarray(drawn) ** power
        np.testing.assert_array_less(np.abs(values.mean(0) - expected), 5 * values.std(0) / np.sqrt(2000))


@every_family
def test_no_family_calls_lapack(name: str) -> None:
    """Its calls never end where several host devices share few threads; see `sample_rotation`."""
    family = FAMILIES[name]()
    drawn = str(jax.make_jaxpr(lambda key: (family.sample_problem(key), family.init(key)))(jax.random.key(0)))
    for primitive in ("geqrf", "qr[", "householder", "eigh", "svd", "cholesky", "lu["):
        assert primitive not in drawn
