"""The predecessors train networks, and can be trained themselves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2 import zoo
from celo2.evaluate import CompareConfig, arrange, compare
from celo2.evaluate.analysis.caveats import caveats
from celo2.evaluate.analysis.summary import rank_optimizers, rank_tasks
from celo2.evaluate.report.html import render_report
from celo2.meta import outer, pes
from celo2.meta.config import MetaConfig
from celo2.meta.inner.families import load_datasets, stack_data
from celo2.meta.run.folder import RunFiles
from celo2.meta.train import TrainOptions, meta_train
from celo2.zoo.specs import Celo, CeloAdam

pytestmark = pytest.mark.usefixtures("standard_promotion")

STEPS = 20
PAIRS = 16  # of the brief training
CURVATURE = np.linspace(0.5, 2.0, 8, dtype=np.float32)
RECIPE = MetaConfig(
    families=("quadratic",),
    datasets=("digits",),
    tasks_per_set=2,
    truncation_length=3,
    min_unroll=3,
    max_unroll=6,
    batch_size=4,
)


def tiny_loss(params: Any) -> jax.Array:
    return jnp.sum(CURVATURE * jnp.square(params["vector"])) / 2.0


def train(name: str, theta: Any, steps: int = STEPS) -> jax.Array:
    """The loss before and after the steps."""
    tx = zoo.make(name, weights=theta, num_steps=steps)
    params = {"vector": jnp.ones(8)}

    def body(carry: Any, _: None) -> Any:
        params, state = carry
        loss, grads = jax.value_and_grad(tiny_loss)(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    (after, _), _ = jax.lax.scan(body, (params, tx.init(params)), None, length=steps)
    return jnp.stack([tiny_loss(params), tiny_loss(after)])


@pytest.mark.parametrize("name", ["celo", "celo_adam"])
def test_released_weights_train(shared: Path, name: str) -> None:
    theta = zoo.load_weights(shared / "checkpoints" / f"{name}.theta.state").arrays
    before, after = jax.jit(lambda: train(name, dict(theta), 100))()
    assert after < 0.9 * before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("celo_adam", {"lstm_size": 4}),
        ("adafac_mlp", {}),
        ("rnn_mlp", {"lstm_size": 4}),
        ("nn_adam", {"lstm_size": 4}),
        ("velo", {"lstm_size": 4, "num_mlps": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_briefly_trained_weights_train(name: str, options: dict[str, int]) -> None:
    """Theta follows an estimate of the gradient of what 20 steps reach; the loss falls below the start's."""
    start = zoo.init_theta(name, jax.random.key(0), **options)
    optimizer = optax.adam(0.03)
    reached = jax.vmap(jax.vmap(lambda theta: train(name, theta)[1]))

    def improve(count: int, carry: Any) -> Any:
        theta, state = carry
        noise = pes.sample_perturbations(jax.random.fold_in(jax.random.key(1), count), theta, 0.1, PAIRS)
        losses = reached(pes.antithetic(theta, noise))
        weight = (losses[:, 0] - losses[:, 1]) / (2.0 * 0.1**2 * PAIRS)
        grads = {name: jnp.tensordot(weight, array, axes=1) for name, array in noise.items()}
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(theta, updates), state

    @jax.jit
    def run(theta: Any) -> tuple[jax.Array, jax.Array]:
        trained, _ = jax.lax.fori_loop(0, 30, improve, (theta, optimizer.init(theta)))
        return train(name, theta), train(name, trained)

    (before, untrained), (_, trained) = run(start)
    assert trained < 0.99 * before
    assert trained < untrained


@functools.cache
def make_run(config: MetaConfig) -> tuple[Callable[[], Any], Callable[[Any, int], Any]]:
    """A run's start, and its outer iterations as `(state, count) → (state, metrics)`, compiled once."""
    mesh = outer.make_mesh()
    outer_steps = outer.make_outer_steps(config, mesh)
    data = stack_data(load_datasets(config), config)
    return lambda: outer.init(config, mesh), lambda state, count: outer_steps(state, data, count)


def few_outer_steps(config: MetaConfig) -> tuple[Any, Any, Any]:
    """Theta before and after three outer iterations, and their metrics."""
    start, advance = make_run(config)
    state = start()
    before = jax.tree.map(np.asarray, state.theta)
    state, metrics = advance(state, 3)
    return before, jax.tree.map(np.asarray, state.theta), jax.tree.map(lambda x: np.asarray(x)[:3], metrics)


@pytest.mark.parametrize("variant", ["celo_adam", "adafac_mlp", "rnn_mlp", "nn_adam", "velo_s"])
def test_predecessor_is_meta_trained(variant: str) -> None:
    # VeLO's first steps are too small for float32 losses; its perturbed weights make larger ones.
    sigma = 1.0 if variant == "velo_s" else RECIPE.sigma
    config = dataclasses.replace(RECIPE, variant=variant, sigma=sigma)
    before, after, metrics = few_outer_steps(config)
    assert {name: array.shape for name, array in after.items()} == config.weight_shapes()
    assert all(np.isfinite(array).all() for array in after.values())
    assert not metrics.skipped.any()
    assert (metrics.grad_norm > 0).all()
    heads = [name for name in after if name.endswith(("step_size/w", "nn/~/w2", "linear_2/w", "controls/w"))]
    assert heads
    assert all(np.any(after[name] != before[name]) for name in heads)


def test_celo_is_meta_trained_in_two_phases(tmp_path: Path) -> None:
    """Each phase moves its own arrays alone; the second goes on from the first's file, and can be resumed."""
    frozen: dict[int, Callable[[str], bool]] = {
        1: lambda name: not name.startswith("ff_mod_stack/"),
        2: lambda name: name.startswith("ff_mod_stack/"),
    }
    start = "random"
    for phase in (1, 2):
        config = dataclasses.replace(RECIPE, variant="celo", phase=phase, start=start)
        options = TrainOptions(out=tmp_path / str(phase), outer_steps=2)
        path = meta_train(config, options)
        weights = zoo.load_weights(path)
        assert isinstance(weights.config, Celo)
        assert weights.config.phase == phase
        assert weights.provenance["outer_steps"] == "2"
        before = _start(config) if phase == 1 else zoo.load_weights(start).arrays
        moved = {name for name, array in weights.arrays.items() if np.any(array != before[name])}
        assert moved
        assert not any(frozen[phase](name) for name in moved)
        start = str(path)
    with RunFiles(options.out) as files:
        restored = files.restore(files.with_own_start(config), outer.make_mesh(), None)
    assert restored is not None
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(restored.theta[name], array)


def _start(config: MetaConfig) -> dict[str, np.ndarray]:
    from celo2.meta.inner.theta import make_start

    return dict(make_start(config).arrays)


def test_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Three iterations in one go, and two and one with a checkpoint between them."""
    config = dataclasses.replace(RECIPE, variant="adafac_mlp")
    start, advance = make_run(config)
    expected, _ = advance(start(), 3)
    stopped, _ = advance(start(), 2)
    with RunFiles(tmp_path) as files:
        files.start(config, resume=False)
        files.save(stopped, config, {})
        restored = files.restore(config, outer.make_mesh())
    assert restored is not None
    resumed, _ = advance(restored, 1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(expected))


def test_predecessor_is_compared_with_a_tuned_optimizer(tmp_path: Path) -> None:
    theta = zoo.init_theta("celo_adam", jax.random.key(0), lstm_size=3)
    zoo.save_weights(tmp_path / "w.state", zoo.ZooWeights(jax.device_get(theta), CeloAdam(lstm_size=3)))
    name = f"celo_adam:{tmp_path / 'w.state'}"
    config = CompareConfig(
        task="quadratic", optimizers=(name, "adamw"), steps=20, seeds=1, num_learning_rates=2, refine=False
    )
    standings = arrange(compare(config))
    own, tuned = (standings.tasks[0].cells[one] for one in (name, "adamw"))
    assert [setting.learning_rate for setting in own.settings] == [1.0]
    assert len(tuned.settings) == 2
    [run] = own.runs
    assert run.train_loss[0] == tuned.runs[0].train_loss[0]  # the same start and batch
    assert np.any(run.train_loss != run.train_loss[0])
    assert f"{name} sets its own step sizes: nothing of it was tuned." in caveats(standings)
    page = render_report(standings, rank_optimizers(standings), rank_tasks(standings))
    assert "step sizes of their own, one run a seed" in page


def test_each_sign_starts_its_lstm_from_its_own_theta() -> None:
    """The start of the state is learned too, so it must be perturbed with the rest."""
    from celo2.meta.inner.unroll import _sample_start as sample_start

    config = dataclasses.replace(RECIPE, variant="nn_adam")
    theta = zoo.init_theta("nn_adam", jax.random.key(0))
    thetas = {name: jnp.stack([array + 1.0, array - 1.0]) for name, array in theta.items()}
    state = sample_start(jax.random.key(1), thetas, "quadratic", config)
    np.testing.assert_array_equal(state.opt_state.memory.lstm.hidden[0], 1.0)
    np.testing.assert_array_equal(state.opt_state.memory.lstm.hidden[1], -1.0)


REFUSED = {
    "rate": (
        {"variant": "velo_s", "inner_learning_rate": 0.1},
        "sets its own step sizes, so inner_learning_rate",
    ),
    "schedule": ({"variant": "celo", "inner_schedule": "cosine"}, "inner_schedule has no meaning"),
    "phase of another": ({"variant": "velo_s", "phase": 1}, "phase must be one of"),
    "third phase": ({"variant": "celo", "phase": 3}, "phase must be one of"),
    "start": ({"variant": "rnn_mlp", "start": "adam"}, "only Celo2 can start at Adam"),
    "frozen": ({"variant": "celo", "frozen": ("w0__*",)}, "no weight array is named"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_recipe_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaConfig(**options)


def test_second_phase_needs_the_first(tmp_path: Path) -> None:
    config = dataclasses.replace(RECIPE, variant="celo", phase=2)
    with pytest.raises(ValueError, match="give the weights of phase 1"):
        meta_train(config, TrainOptions(out=tmp_path, outer_steps=1))


def test_predecessor_is_not_probed(tmp_path: Path) -> None:
    config = dataclasses.replace(RECIPE, variant="celo_adam")
    with pytest.raises(ValueError, match="probe_every must be 0 for 'celo_adam'"):
        meta_train(config, TrainOptions(out=tmp_path, outer_steps=1, probe_every=1))


def test_start_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    from celo2.meta.inner.theta import load_start

    arrays = {name: np.asarray(a) for name, a in zoo.init_theta("celo_adam", jax.random.key(0)).items()}
    zoo.save_weights(tmp_path / "w.safetensors", zoo.ZooWeights(arrays, zoo.PRESETS["celo_adam"]))
    config = dataclasses.replace(RECIPE, variant="nn_adam", start=str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="weights of 'celo_adam', expected 'nn_adam'"):
        load_start(config)
