"""A comparison: its settings, and that it trains the optimizers alike."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import optax
import pytest

from celo2.baselines import OPTIMIZERS, find_optimizer, make_optimizer
from celo2.config import RuleConfig
from celo2.evaluate import CompareConfig, arrange, compare
from celo2.evaluate.suite import local
from celo2.evaluate.suite.run import SuiteProgress
from celo2.tasks.registry import make_task
from celo2.training.optimizer_step import make_step
from celo2.training.timing import TimedStep, time_steps
from celo2.weights.checkpoint import Weights, save_weights

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_default_grid_is_log_uniform_and_as_large_for_every_optimizer(name):
    rates = np.asarray(find_optimizer(name).learning_rates(7))
    assert len(rates) == 7
    ratios = rates[1:] / rates[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=0.02)  # the rates have three digits
    assert find_optimizer(name).learning_rates(1) == pytest.approx((rates[3],), rel=0.01)


def test_grid_of_no_learning_rate_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        find_optimizer("adamw").learning_rates(0)


@pytest.mark.parametrize(
    ("name", "nearest"), [("adamww", "adamw"), ("mun", "muon"), ("celo2:", "celo2"), ("adamw:x", "adamw")]
)
def test_unknown_optimizer_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        make_optimizer(name, 1e-3)


@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_rule_with_weights_from_a_file(tmp_path, variant):
    config = RuleConfig(orthogonalize=variant == "celo2")
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in config.weight_shapes().items()
    }
    path = tmp_path / "theta.safetensors"
    save_weights(path, Weights(arrays, config))
    spec = find_optimizer(f"{variant}:{path}")
    assert str(path) in spec.description
    other = "celo2" if variant == "celo2-base" else "celo2-base"
    with pytest.raises(ValueError, match="orthogonalize"):
        find_optimizer(f"{other}:{path}")


def test_muon_orthogonalises_hidden_matrices_only():
    rng = np.random.default_rng(0)
    params = {
        "layer_0": {"kernel": np.float32(rng.normal(size=(12, 8)))},
        "layer_1": {"kernel": np.float32(rng.normal(size=(8, 8)))},
        "head": {"kernel": np.float32(rng.normal(size=(8, 5)))},
    }
    optimizer = make_optimizer("muon", 1.0)
    updates: Any = optimizer.update(params, optimizer.init(params), params)[0]
    spread = {name: np.linalg.cond(np.asarray(layer["kernel"])) for name, layer in updates.items()}
    # five Newton–Schulz iterations leave singular values within about 0.7 to 1.2 of each other
    assert spread["layer_0"] < 2.5
    assert spread["layer_1"] < 2.5
    np.testing.assert_allclose(
        np.abs(updates["head"]["kernel"]), np.abs(updates["head"]["kernel"]).max(), rtol=1e-2
    )


def test_quick_settings_yield_to_explicit_ones():
    config = CompareConfig(quick=True, steps=77)
    assert config.steps == 77
    assert config.seeds < CompareConfig().seeds
    assert config.num_learning_rates < CompareConfig().num_learning_rates


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "fashion-mpl"}, "did you mean 'fashion-mlp'"),
        ({"optimizers": ("adamww",)}, "did you mean 'adamw'"),
        ({"optimizers": ()}, "one or more different"),
        ({"optimizers": ("sgd", "sgd")}, "one or more different"),
        ({"seeds": -1}, "seeds must be a whole number from 0"),
        ({"weight_decay": math.nan}, "weight_decay must be finite and not negative"),
        ({"max_memory": 0.0}, "max_memory must be positive"),
        ({"learning_rates": {"sgdd": (0.1,)}, "optimizers": ("sgd",)}, "did you mean 'sgd'"),
    ],
    ids=["task", "optimizer", "none", "twice", "seeds", "decay", "memory", "rates-of-none"],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**settings)


def test_learning_rates_of_one_optimizer_go_before_those_of_all():
    config = CompareConfig(
        optimizers=("sgd", "adamw", "muon"), learning_rates={"sgd": (0.3, 0.1), "all": (0.5,)}
    )
    rates = {group.optimizer: group.learning_rates for group in config.suite().groups(config.task)}
    assert rates == {"sgd": (0.1, 0.3), "adamw": (0.5,), "muon": (0.5,)}


@pytest.mark.parametrize(
    ("optimizers", "baseline"), [(("celo2", "adamw"), "adamw"), (("muon", "celo2"), "muon")]
)
def test_baseline_is_adamw_or_the_first(optimizers, baseline):
    assert CompareConfig(optimizers=optimizers).baseline == baseline


def test_compare_treats_optimizers_alike(instant_training):
    config = CompareConfig(task="quadratic", optimizers=("sgd", "adamw"), steps=9, seeds=3, first_seed=4)
    results = compare(config)
    assert [len(rates) for rates, *_ in instant_training] == [7, 7, 2, 2]  # the grid, and around the best
    assert {tuple(rest) for _, *rest in instant_training} == {((4, 5, 6), 9)}
    [task] = arrange(results).tasks
    assert {name: len(cell.runs) for name, cell in task.cells.items()} == {"sgd": 27, "adamw": 27}
    assert task.facts.num_parameters == 64 * 32
    assert task.rank_by == "validation"


def test_compare_reports_progress_to_the_end(instant_training):
    seen: list[SuiteProgress] = []
    compare(CompareConfig(task="quadratic", optimizers=("sgd", "adamw"), quick=True), on_progress=seen.append)
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, 8, 8)


def test_comparison_in_a_folder_goes_on_where_it_was_interrupted(interrupt_training, tmp_path):
    config = CompareConfig(task="quadratic", optimizers=("sgd", "adamw"), quick=True)
    interrupt_training(1)
    with pytest.raises(KeyboardInterrupt):
        compare(config, folder=tmp_path)
    interrupt_training(100)
    seen: list[SuiteProgress] = []
    results = compare(config, folder=tmp_path, on_progress=seen.append)
    assert (seen[0].done, len(results)) == (4, 8)


def test_failed_optimizer_is_named_and_the_others_are_kept(instant_training, monkeypatch, tmp_path):
    def fail(name, **options):
        if name == "sgd":
            raise ValueError("no such thing")
        return find_optimizer(name, **options)

    monkeypatch.setattr(local, "find_optimizer", fail)
    config = CompareConfig(task="quadratic", optimizers=("sgd", "adamw"), quick=True)
    with pytest.raises(RuntimeError, match="sgd: ValueError: no such thing"):
        compare(config, folder=tmp_path)
    monkeypatch.undo()
    assert {path.parent.name for path in tmp_path.glob("runs/*/*/*")} == {"adamw"}


def test_times_of_a_comparison_are_of_a_run_alone_and_have_the_state_of_each_optimizer():
    config = CompareConfig(task="quadratic", optimizers=("sgd", "sgdm"), quick=True, steps=4)
    results = compare(config)
    assert {run.timing for run in results} == {"alone"}
    state = {run.spec.optimizer: run.state_bytes for run in results}
    assert state["sgdm"] - state["sgd"] == 4 * 64 * 32
    seconds = {name: {r.seconds_per_step for r in results if r.spec.optimizer == name} for name in state}
    assert all(len(times) == 1 and min(times) > 0 for times in seconds.values())


def test_steps_are_timed_in_turn():
    task = make_task("quadratic")
    params = task.init(jax.random.key(0))
    batch = task.first_batch(params, jax.random.key(1))
    order: list[str] = []
    names: dict[TimedStep, str] = {}

    class Step(TimedStep):
        def run(self, inputs):
            order.append(names[self])
            return super().run(inputs)

    steps: list[TimedStep] = []
    for name, optimizer in (("a", optax.sgd(0.1)), ("b", optax.adam(0.1))):
        steps.append(Step(make_step(task, optimizer), optimizer, params, batch))
        names[steps[-1]] = name
    time_steps(steps, lambda: task.init(jax.random.key(0)), batch, budget=0.0)
    assert order == ["a", "b"] * 7  # one that does not count, one to estimate, five rounds
    assert [len(step.times) for step in steps] == [5, 5]
