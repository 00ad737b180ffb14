"""Tasks of others: made from a model, registered, named by their function, and checked."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from celo2.baselines import OPTIMIZERS, check_optimizer_name, find_optimizer, register_optimizer
from celo2.evaluate import CompareConfig, compare
from celo2.meta import MetaConfig
from celo2.tasks import Dataset, Task, make_task, register_task, task_from_model
from celo2.tasks.families import TaskFamily, register_family
from celo2.tasks.families.quadratic import QuadraticFamily
from celo2.tasks.registry import TASKS, check_task, describe_tasks

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)
ROWS = {
    "x": RNG.normal(size=(64, 3)).astype(np.float32),
    "y": RNG.normal(size=(64, 1)).astype(np.float32),
}


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.relu(linen.Dense(4)(x)))


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def make_equinox(key):
    return Batched(eqx.nn.MLP(3, 1, 4, 1, key=key))


class Batched(eqx.Module):
    net: eqx.nn.MLP

    def __call__(self, x):
        return jax.vmap(self.net)(x)


def init_plain(key):
    return {"w": jax.random.normal(key, (3, 1))}


MODELS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "linen": (LinenNet(), {"inputs": "x"}, 21),
    "nnx": (lambda key: NNXNet(nnx.Rngs(key)), {}, 21),
    "equinox": (make_equinox, {}, 21),
    "plain": ((init_plain, lambda params, x: x @ params["w"]), {}, 3),
}


def mean_square(model, batch):
    return jnp.square(model(batch["x"]) - batch["y"]).mean()


@pytest.mark.parametrize(("model", "options", "count"), MODELS.values(), ids=MODELS)
def test_a_model_becomes_a_task_that_trains(model: Any, options: dict[str, Any], count: int) -> None:
    task = task_from_model("mine", model, mean_square, ROWS, ROWS, batch_size=16, **options)
    params = task.init(jax.random.key(1))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert not jnp.array_equal(*(jax.tree.leaves(task.init(jax.random.key(k)))[-1] for k in (1, 2)))
    batch = {name: jnp.asarray(array) for name, array in ROWS.items()}
    optimizer = optax.adam(0.03)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    assert 0.2 < task.initial_loss < 20


def test_the_same_weights_give_the_models_own_loss() -> None:
    """What is optimised is the module's own function of its own parameters."""
    net = NNXNet(nnx.Rngs(jax.random.key(5)))
    task = task_from_model("mine", lambda key: NNXNet(nnx.Rngs(key)), mean_square, ROWS, ROWS)
    np.testing.assert_allclose(
        task.loss(task.init(jax.random.key(5)), ROWS), mean_square(net, ROWS), rtol=1e-6
    )
    linen_task = task_from_model("mine", LinenNet(), mean_square, ROWS, ROWS, inputs="x")
    variables = LinenNet().init(jax.random.key(5), ROWS["x"][:1])
    np.testing.assert_allclose(
        linen_task.loss(linen_task.init(jax.random.key(5)), ROWS),
        mean_square(lambda x: LinenNet().apply(variables, x), ROWS),
        rtol=1e-6,
    )


class Normed(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.BatchNorm(use_running_average=False)(x))


class Dropped(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.drop, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(x))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Normed(), {"inputs": "x"}, "state besides its parameters .batch_stats."),
        (lambda key: Dropped(nnx.Rngs(key)), {}, "state besides its parameters .Rng"),
        (LinenNet(), {}, "needs inputs="),
        (LinenNet(), {"inputs": "z"}, "among .'x', 'y'.; got .'z'."),
        (7, {}, "the model is int, expected a Flax Linen module"),
        (lambda key: {"w": key}, {}, "makes dict, which cannot be called"),
    ],
    ids=["batch norm", "dropout", "no inputs", "other inputs", "number", "dict"],
)
def test_a_model_that_cannot_be_a_task_says_why(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_from_model("mine", model, mean_square, ROWS, ROWS, **options)


def make_own(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "own",
        "dataset": Dataset("rows", ROWS, ROWS),
        "init": init_plain,
        "loss": lambda params, batch: jnp.square(batch["x"] @ params["w"] - batch["y"]).mean(),
        "batch_size": 8,
        "initial_loss": 5.0,
    }
    return Task(**{**values, **changes})


def _loss(function: Callable[[Any], Any]) -> dict[str, Any]:
    return {"loss": lambda params, batch: function(batch["x"] @ params["w"] - batch["y"])}


UNEVEN = {"x": ROWS["x"], "y": ROWS["y"][:5]}
FAULTS: dict[str, tuple[Any, str]] = {
    "no task": (3, "made as int, expected a celo2.tasks.Task"),
    "loss of each example": (make_own(**_loss(jnp.square)), r"loss has shape \(8, 1\), expected \(\)"),
    "loss in bfloat16": (make_own(**_loss(lambda e: e.mean().astype(jnp.bfloat16))), "loss is bfloat16"),
    "two losses": (
        make_own(**_loss(lambda e: (e.mean(), e.mean()))),
        "loss returns tuple, expected one number",
    ),
    "loss of Python": (make_own(**_loss(lambda e: float(e.mean()))), "loss cannot be traced by JAX: Concret"),
    "a key error": (
        make_own(loss=lambda _, batch: batch["z"]),
        "loss cannot be traced by JAX: KeyError",
    ),
    "accuracy": (make_own(accuracy=lambda _, batch: batch["y"]), r"accuracy has shape \(8, 1\)"),
    "whole parameters": (make_own(init=lambda _: jnp.arange(3)), "parameters of int32 type"),
    "no parameters": (make_own(init=lambda _: {}), "parameters of no type"),
    "init": (make_own(init=lambda key: {"w": jnp.ones(int(key[0]))}), "init cannot be traced by JAX"),
    "no arrays": (make_own(dataset=Dataset("none", {}, {})), "no arrays, and there is no stream"),
    "other names": (make_own(dataset=Dataset("rows", ROWS, {"x": ROWS["x"]})), "expected the same names"),
    "lengths": (
        make_own(dataset=Dataset("rows", UNEVEN, ROWS)),
        r"common leading axis, got x \(64, 3\), y \(5, 1\)",
    ),
    "batch size": (make_own(batch_size=0), "batch_size must be a whole number from 1"),
    "initial loss": (make_own(initial_loss=float("nan")), "initial_loss is NaN"),
}


@pytest.mark.parametrize(("task", "message"), FAULTS.values(), ids=FAULTS)
def test_a_task_unlike_the_interface_is_refused_in_a_line(task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        check_task("own", task)
    assert str(refusal.value).startswith("task 'own': ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["quadratic", "digits-mlp", "tiny-lm", "ppo-asterix@tiny"])
def test_tasks_of_this_package_pass(name: str) -> None:
    check_task(name, make_task(name))


def test_registered_task_and_optimizer_are_compared() -> None:
    register_task("own", make_own)
    register_optimizer("plain-sgd", optax.sgd)
    config = CompareConfig(
        task="own", optimizers=("plain-sgd", "celo2"), steps=8, seeds=1, num_learning_rates=2
    )
    results = compare(config)
    assert {run.spec.optimizer for run in results} == {"plain-sgd", "celo2"}
    assert {run.facts.dataset for run in results} == {"rows"}
    assert "own" in describe_tasks()


@pytest.mark.parametrize("name", ["quadratic", "own@tiny", "a:b", "a b", ""])
def test_a_name_that_is_taken_or_has_other_characters_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"already|have letters, digits"):
        register_task(name, make_own)


@pytest.mark.parametrize("name", ["adamw", "velo", "all"])
def test_an_optimizer_name_with_another_meaning_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"already|means something else"):
        register_optimizer(name, optax.sgd)


def test_a_task_with_sizes_has_names_with_sizes() -> None:
    register_task("sized", lambda size="full": make_own(batch_size={"tiny": 2, "full": 8}[size]))
    assert (make_task("sized@tiny").batch_size, make_task("sized").batch_size) == (2, 8)
    register_task("one-size", make_own())
    with pytest.raises(ValueError, match="has one size only"):
        make_task("one-size@tiny")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder; its name."""
    (tmp_path / "own_module_of_a_user.py").write_text(
        "import optax\n"
        "from celo2.tasks.quadratic import make_quadratic\n"
        "def make_task():\n"
        '    """My quadratic."""\n'
        "    return make_quadratic(condition=3.0)\n"
        "def make_tx(learning_rate, weight_decay):\n"
        '    """My descent."""\n'
        "    return optax.sgd(learning_rate)\n"
        "def only_rate(learning_rate):\n"
        "    return optax.sgd(learning_rate)\n"
        "number = 7\n"
    )
    (tmp_path / "broken_module_of_a_user.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return "own_module_of_a_user"


def test_functions_of_a_module_in_the_current_folder_are_named(module: str) -> None:
    assert make_task(f"{module}:make_task").dataset.name.endswith("condition-3")
    spec = find_optimizer(f"{module}:make_tx")
    assert (spec.name, spec.description) == (f"{module}:make_tx", "My descent")
    assert spec.learning_rates(2) == (1e-4, 0.1)
    with pytest.raises(ValueError, match="takes a learning rate only"):
        find_optimizer(f"{module}:only_rate").make(0.1, 0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_module_of_a_user:make_taks", "has no 'make_taks'; did you mean 'make_task'"),
        ("own_module_of_a_user:number", "is int, expected a function"),
        ("broken_module_of_a_user:make_task", "cannot be imported .ZeroDivisionError: division by zero"),
        ("no_such_module_anywhere:make_task", "cannot be imported .ModuleNotFoundError"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_cannot_be_loaded_is_told(name: str, message: str) -> None:
    for make in (make_task, check_optimizer_name):
        with pytest.raises(ValueError, match=message):
            make(name)


@pytest.mark.usefixtures("module")
def test_an_optimizer_that_makes_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="is made as int, expected an optax"):
        find_optimizer("operator:index").make(1, 0.0)


def test_entry_points_of_installed_packages_are_found(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "celo2.tasks": [
            importlib.metadata.EntryPoint("theirs", f"{module}:make_task", "celo2.tasks"),
            importlib.metadata.EntryPoint("broken", "broken_module_of_a_user:x", "celo2.tasks"),
        ],
        "celo2.optimizers": [
            importlib.metadata.EntryPoint("theirs", f"{module}:make_tx", "celo2.optimizers")
        ],
    }
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: points[group])
    monkeypatch.syspath_prepend(str(Path.cwd()))
    for registry in (TASKS, OPTIMIZERS):
        monkeypatch.setattr(registry, "_points", None)
    assert make_task("theirs").dataset.name.endswith("condition-3")
    assert find_optimizer("theirs").description == "My descent"
    assert "My quadratic" in describe_tasks()
    assert "ZeroDivisionError" in describe_tasks()  # and the others are listed nevertheless
    with pytest.raises(ValueError, match=r"'broken' of an installed package .* cannot be imported"):
        make_task("broken")


class OwnFamily(QuadraticFamily):
    """A family of a user."""


def test_a_family_of_ones_own_is_mixed_by_name_and_by_module() -> None:
    register_family("own", OwnFamily)
    own = f"{__name__}:OwnFamily"
    assert MetaConfig(families=("own:3", "mlp")).pairs_by_family == {"own": 24, "mlp": 8}
    assert MetaConfig(families=(f"{own}:3", "mlp")).pairs_by_family == {own: 24, "mlp": 8}
    assert MetaConfig(families=(own,)).pairs_by_family == {own: 32}
    with pytest.raises(ValueError, match="is <class 'object'>, expected a subclass"):
        register_family("no-family", object)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="lacks the methods compute_loss, init_params, make_batch"):
        register_family("abstract", TaskFamily)
