"""One outer iteration; instead of inner runs, a loss that is a function of theta."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.meta import estimators, outer, pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner import families
from celo2.meta.inner.unroll import InnerState, Losses
from celo2.meta.outer import OuterMetrics, OuterState
from celo2.tasks.families.base import TaskData

pytestmark = pytest.mark.usefixtures("standard_promotion", "theta_as_inner_run")

CONFIG = MetaConfig(datasets=("digits", "mnist"), tasks_per_set=2)


@pytest.fixture
def theta_as_inner_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss at each step is `|θ - 1|² / 10`, of a theta of three small arrays."""

    def init_theta(key, config) -> dict[str, jax.Array]:
        return {"w0__0": jnp.zeros((1, 4)), "w1": jnp.full(3, -1.0), "b1": jnp.zeros(2)}

    def init_pairs(pair_keys, theta, config, *, family) -> InnerState:
        zeros = jnp.zeros((config.num_pairs,), jnp.int32)
        return InnerState({}, {}, {}, {}, zeros, zeros)

    def unroll(thetas, state, pair_keys, set_index, data, config, *, family) -> tuple[InnerState, Losses]:
        squares = [jnp.sum((x - 1.0) ** 2, axis=tuple(range(2, x.ndim))) for x in thetas.values()]
        loss = sum(squares[1:], squares[0]) / 10.0  # (pairs, 2)
        steps = jnp.broadcast_to(loss, (config.truncation_length, *loss.shape))
        zeros = jnp.zeros((len(steps), len(loss)), jnp.int32)
        never = zeros > 0
        weight = jnp.full(zeros.shape, 1.0 / len(zeros))
        return state, Losses(steps[..., 0], steps[..., 1], never, zeros, ~never, never, weight)

    monkeypatch.setattr(outer, "init_theta", init_theta)
    monkeypatch.setattr(families, "init_pairs", init_pairs)
    monkeypatch.setattr(families, "unroll", unroll)


def _run(
    config: MetaConfig, steps: int = 3, optimizer: optax.GradientTransformation | None = None
) -> tuple[list[OuterState], OuterMetrics]:
    """The states before the first iteration and after each, and the last one's metrics."""
    mesh = outer.make_mesh()
    outer_steps = outer.make_outer_steps(config, mesh, optimizer)
    state = outer.init(config, mesh, optimizer)
    states, metrics = [jax.device_get(state)], None
    for _ in range(steps):
        state, metrics = outer_steps(state, TaskData(), 1)  # no data is looked at
        states.append(jax.device_get(state))
    return states, jax.tree.map(lambda found: jax.device_get(found)[0], metrics)


def test_theta_follows_the_meta_gradient() -> None:
    states, metrics = _run(dataclasses.replace(CONFIG, tasks_per_set=256, outer_learning_rate=0.1), steps=5)
    distance = [sum(float(((x - 1.0) ** 2).sum()) for x in state.theta.values()) for state in states]
    assert distance[-1] < 0.9 * distance[0]
    assert float(metrics.meta_loss) == pytest.approx(float(metrics.loss_per_task.mean()))


def test_iterations_do_not_depend_on_how_many_are_computed_at_once() -> None:
    mesh = outer.make_mesh()
    outer_steps = outer.make_outer_steps(CONFIG, mesh)
    results = []
    for calls in ((5,), (2, 0, 3)):
        state, norms = outer.init(CONFIG, mesh), []
        for num_steps in calls:
            state, metrics = outer_steps(state, TaskData(), num_steps)
            norms += metrics.grad_norm[:num_steps].tolist()
        results.append((jax.tree.map(np.asarray, state), norms))
    (once, norms), (in_calls, norms_in_calls) = results
    assert norms == norms_in_calls
    assert len(set(norms)) == 5
    jax.tree.map(np.testing.assert_array_equal, once, in_calls)


def test_frozen_arrays_stay_and_are_not_perturbed() -> None:
    frozen = dataclasses.replace(CONFIG, frozen=("w1", "b1"), outer_weight_decay=0.1)
    (first, *_, last), _ = _run(frozen)
    for name, array in first.theta.items():
        is_frozen = name in frozen.frozen_names
        assert (last.theta[name].tobytes() == array.tobytes()) == is_frozen, name
        assert np.asarray(last.accumulator[name]).any() != is_frozen, name


def test_any_chain_can_be_the_outer_optimizer() -> None:
    chain = optax.chain(optax.scale_by_sign(), optax.scale(-0.5))
    (first, last), _ = _run(dataclasses.replace(CONFIG, outer_optimizer="custom"), 1, chain)
    for name, array in first.theta.items():
        np.testing.assert_allclose(np.abs(last.theta[name] - array), 0.5)


def test_freezing_leaves_the_perturbations_of_the_others_alone() -> None:
    free, part = (
        _run(dataclasses.replace(CONFIG, frozen=names), steps=1)[0][-1] for names in ((), ("w0__*",))
    )
    for name in ("w1", "b1"):
        np.testing.assert_array_equal(part.accumulator[name], free.accumulator[name])


@pytest.mark.parametrize("estimator", ["pes", "truncated-es", "full-es"])
def test_signs_go_on_from_one_state_with_truncated_es_only(estimator: str) -> None:
    config = dataclasses.replace(CONFIG, estimator=estimator)
    both = jnp.arange(12.0).reshape(3, 2, 2)
    step = jnp.arange(3)
    after = estimators.next_start(InnerState({"w": both}, (both,), {"w": step}, {}, step, step), config)
    expected = both[:, [0, 0]] if estimator == "truncated-es" else both
    np.testing.assert_array_equal(after.params["w"], expected)
    np.testing.assert_array_equal(after.opt_state[0], expected)
    np.testing.assert_array_equal(after.step, step)


def test_a_run_keeps_its_perturbation_with_noise_reuse_only() -> None:
    fresh, held = {"w": jnp.ones((3, 2))}, {"w": jnp.zeros((3, 2))}
    starting = jnp.array([True, False, True])
    reusing = dataclasses.replace(CONFIG, estimator="noise-reuse-es")
    kept = estimators.perturb(fresh, held, starting, reusing)["w"]
    np.testing.assert_array_equal(kept, [[1, 1], [0, 0], [1, 1]])
    assert estimators.perturb(fresh, held, starting, CONFIG) is fresh


@pytest.mark.parametrize(("options", "read"), [((), 1), (("exp_mult=0.1",), 2)], ids=["default", "magnitude"])
def test_outputs_that_nothing_reads_are_not_perturbed(options: tuple[str, ...], read: int) -> None:
    config = dataclasses.replace(CONFIG, rule_options=options)
    ones = {name: jnp.ones((2, *shape)) for name, shape in config.weight_shapes().items()}
    masked = estimators.mask_unread(ones, config)
    kept = {name: int(array[0].sum()) for name, array in masked.items()}
    assert (kept["w2"], kept["b2"]) == (8 * read, read)
    assert sum(kept.values()) == 347 - 9 * (3 - read)


def test_unread_outputs_of_a_linear_network_are_not_perturbed() -> None:
    config = dataclasses.replace(CONFIG, rule_options=("ff_hidden_layers=0", "ff_hidden_size=3"))
    ones = {name: jnp.ones((2, *shape)) for name, shape in config.weight_shapes().items()}
    for array in estimators.mask_unread(ones, config).values():
        np.testing.assert_array_equal(array[..., 0], 1.0)
        np.testing.assert_array_equal(array[..., 1:], 0.0)


@pytest.mark.parametrize("fault", ["gradient", "update"])
def test_what_is_not_finite_is_skipped_and_counted(fault: str) -> None:
    if fault == "gradient":
        config, chain = dataclasses.replace(CONFIG, sigma=1e-30), None  # its square is zero in float32
    else:
        config = dataclasses.replace(CONFIG, outer_optimizer="custom")
        chain = optax.chain(optax.trace(0.9), optax.scale(float("inf")))
    (first, last), metrics = _run(config, 1, chain)
    assert int(metrics.skipped) == 1
    assert np.isfinite(metrics.grad_norm) == (fault == "update")
    for kept, before in zip(*(jax.tree.leaves((s.theta, s.opt_state)) for s in (last, first)), strict=True):
        np.testing.assert_array_equal(kept, before)
    assert int(last.count) == 1


def test_finite_gradient_is_not_skipped() -> None:
    _, metrics = _run(CONFIG, 1)
    assert int(metrics.skipped) == 0


def test_diverged_runs_are_counted_at_their_last_step() -> None:
    """Three steps of two pairs: one run of the first is broken at its end, both of the second before."""
    diverged = jnp.array([[0, 2], [1, 0], [2, 0]])
    is_last = jnp.array([[False, False], [True, True], [False, False]])
    is_running = jnp.array([[True, True], [True, True], [False, True]])
    ones = jnp.ones((3, 2))
    losses = Losses(ones, ones, is_last & False, diverged, is_running, is_last, ones)
    found = pes.Estimate({"w": jnp.ones(4)}, {}, jnp.zeros(()), jnp.ones(()), {})
    done = outer._Measured((), losses, found)
    metrics = outer._compute_metrics(done, jnp.int32(0), task_sizes=(1, 1), num_signs=2)
    assert int(metrics.ended_runs) == 4
    assert int(metrics.diverged_runs) == 1
    assert float(metrics.diverged) == pytest.approx(3 / 10)
    assert float(metrics.grad_norm) == 2.0
