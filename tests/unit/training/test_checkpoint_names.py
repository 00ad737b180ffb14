"""The names of the folders of checkpoints: another program has another name, the same program the same."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from celo2.baselines import OPTIMIZERS, register_optimizer
from celo2.evaluate.environment import describe_task
from celo2.evaluate.suite import checkpoint_names, local, program_digest
from celo2.evaluate.suite.checkpoint_names import digest_task, name_checkpoints
from celo2.evaluate.suite.local import Machine, train_groups
from celo2.evaluate.suite.program_digest import digest_package, digest_program
from celo2.evaluate.suite.run import run_suite
from celo2.evaluate.suite.spec import Suite
from celo2.evaluate.suite.store import RunStore
from celo2.tasks.base import Dataset, Task
from celo2.tasks.from_model import task_from_model
from celo2.tasks.quadratic import make_quadratic
from celo2.tasks.registry import register_task
from celo2.tasks.vision.host_images import keep_on_host

ROWS = {"x": np.ones((8, 3), np.float32), "y": np.zeros(8, np.float32)}
MODEL = """
import jax
def init(key):
    return {"w": jax.random.normal(key, (3,))}
def apply(params, x):
    return 1.0 * (x @ params["w"])
"""
LOSS = """
def compute(model, batch):
    return 1.0 * ((model(batch["x"]) - batch["y"]) ** 2).mean()
"""
PLAIN_LOSS = """
def compute(params, batch):
    return 1.0 * ((params["w"] - batch["image"].mean()) ** 2).mean()
"""
OPTIMIZER = """
import optax
def make(rate):
    return optax.sgd(1.0 * rate)
def choose(state, params):
    return params
"""
STREAM = """
class Stream:
    def __init__(self, task):
        self.task = task
    def init(self, params, key):
        return ()
    def next(self, state, params, key, count):
        return state, self.task.sample_batch(key, dict(self.task.dataset.train))
    def validate(self, params, key):
        return 1.0 * params["w"].sum()
"""
TASK = """
from celo2.tasks.base import Task
class OwnTask(Task):
    def sample_batch(self, key, arrays):
        return {name: 1.0 * array[: self.batch_size] for name, array in arrays.items()}
"""


def make_suite(task: str = "quadratic", optimizer: str = "sgd") -> Suite:
    return Suite(name="one", tasks=(task,), optimizers=(optimizer,), num_learning_rates=1, seeds=1, steps=2)


@pytest.fixture
def write(tmp_path, monkeypatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Writes a module of somebody and imports it; one that is there is imported anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written = []

    def write_module(name: str, text: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        written.append(name)
        return importlib.import_module(name)

    yield write_module
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def name_of(instant_training, monkeypatch) -> Callable[..., str]:
    """Returns the name of the folder that a group would have, without training it."""
    names: list[str] = []
    monkeypatch.setattr(local, "Checkpoints", lambda folder, _: names.append(folder.name))

    def find(task: str = "mine", optimizer: str = "sgd", rows: int = 0) -> str:
        before = len(names)
        list(
            train_groups(
                make_suite(task, optimizer).groups(task), Machine(checkpoints=Path("none"), rows_at_once=rows)
            )
        )
        [name] = names[before:]
        return name

    return find


def register_model(rows: Mapping[str, np.ndarray] = ROWS) -> None:
    """Registers a task as the documentation says; the modules are looked up when it is made."""

    def make() -> Task:
        model, loss = sys.modules["own_model"], sys.modules["own_loss"]
        pair = (lambda key: model.init(key), model.apply)
        accuracy = sys.modules["own_accuracy"].compute
        options = {"accuracy": accuracy, "batch_size": 4, "initial_loss": 1.0}
        return task_from_model("mine", pair, loss.compute, rows, rows, **options)

    register_task("mine", make)


@pytest.fixture
def own_model(write) -> None:
    write("own_model", MODEL)
    write("own_loss", LOSS)
    write("own_accuracy", LOSS)


def images_task(**changes: Any) -> Task:
    """A plain task on images whose loss is somebody's."""
    rows = {"image": np.ones((8, 2, 2, 1), np.float32)}
    return Task(
        **{
            "name": "images",
            "dataset": Dataset("images", rows, rows),
            "init": lambda key: {"w": jax.random.normal(key, (3,))},
            "loss": sys.modules["own_loss"].compute,
            "batch_size": 4,
            "initial_loss": np.inf,
            "mean_over_examples": True,
            **changes,
        }
    )


class TestSources:
    """Somebody's own files, wherever the task or the optimizer holds something of them."""

    @pytest.mark.parametrize("module", ["own_loss", "own_model", "own_accuracy"])
    @pytest.mark.usefixtures("own_model")
    def test_a_registered_task_of_a_model(self, name_of, write, module: str) -> None:
        text = MODEL if module == "own_model" else LOSS
        register_model()
        first = name_of()
        write(module, text.replace("1.0", "2.0"))
        assert name_of() != first
        write(module, text)
        assert name_of() == first

    @pytest.mark.parametrize("wrap", ["in_parts", "on_host", "both"])
    def test_a_wrapped_task(self, name_of, write, wrap: str) -> None:
        keep = keep_on_host if wrap != "in_parts" else lambda task: task
        register_task("mine", lambda: keep(images_task()))
        rows = 2 if wrap != "on_host" else 0
        names = []
        for factor in ("1.0", "2.0", "1.0"):
            write("own_loss", PLAIN_LOSS.replace("1.0", factor))
            names.append(name_of(rows=rows))
        assert names[0] == names[2] != names[1]

    @pytest.mark.parametrize("text", [STREAM, TASK], ids=["stream", "sample_batch"])
    def test_a_source_of_batches(self, name_of, write, text: str) -> None:
        write("own_loss", PLAIN_LOSS)

        def make() -> Task:
            task, own = images_task(), sys.modules["own_batches"]
            if text is STREAM:
                return dataclasses.replace(task, stream=own.Stream(task))
            return own.OwnTask(
                **{field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
            )

        register_task("mine", make)
        names = []
        for factor in ("1.0", "2.0", "1.0"):
            write("own_batches", text.replace("1.0", factor))
            names.append(name_of())
        assert names[0] == names[2] != names[1]

    def test_an_optimizer_and_what_it_evaluates(self, name_of, write) -> None:
        names = []
        for factor in ("1.0", "2.0", "1.0"):
            write("own_sgd", OPTIMIZER.replace("1.0", factor))
            names.append(name_of("quadratic", "own_sgd:make"))
        assert names[0] == names[2] != names[1]
        chosen = write("own_choice", OPTIMIZER).choose
        register_optimizer("own", dataclasses.replace(OPTIMIZERS["sgd"], eval_params=chosen))
        first = name_of("quadratic", "own")
        chosen = write("own_choice", OPTIMIZER + "# edited").choose
        OPTIMIZERS._entries["own"] = dataclasses.replace(OPTIMIZERS["own"], eval_params=chosen)
        assert name_of("quadratic", "own") != first

    def test_the_module_of_a_name(self, name_of, write) -> None:
        write("own_name", "from celo2.tasks.quadratic import make_quadratic as make")
        first = name_of("own_name:make")
        write("own_name", "from celo2.tasks.quadratic import make_quadratic as make  # edited")
        assert name_of("own_name:make") != first

    def test_a_module_that_is_named_like_one_of_pythons(self, write) -> None:
        first = digest_program(write("this", LOSS).compute)
        assert digest_program(write("this", LOSS.replace("1.0", "2.0")).compute) != first

    def test_code_without_a_file(self, monkeypatch) -> None:
        """As of a notebook's cells."""
        monkeypatch.setitem(sys.modules, "cell", ModuleType("cell"))

        def digest(text: str) -> tuple[str, str]:
            names: dict[str, Any] = {"__name__": "cell"}
            exec(text, names)
            return digest_program(names["compute"]), digest_program(names["Model"]())

        cell = "def compute(x): return 1.0 * x\nclass Model:\n    def __call__(self, x): return 1.0 * x"
        first = digest(cell)
        assert digest(cell) == first
        assert all(one != other for one, other in zip(digest(cell.replace("1.0", "2.0")), first, strict=True))


class TestImported:
    """What counts is what was imported, not what is in the file later."""

    @pytest.mark.parametrize("by", ["an_earlier_task", "the_suite"])
    def test_a_file_that_is_edited_while_others_train(self, name_of, tmp_path, write, by: str) -> None:
        write("own_sgd", OPTIMIZER)

        def edit() -> None:
            (tmp_path / "own_sgd.py").write_text(OPTIMIZER.replace("1.0", "2.0"))

        if by == "the_suite":
            run_suite(make_suite(), RunStore(tmp_path / "runs"), engine=lambda *_: iter(edit() or ()))
        else:
            name_of("quadratic")
            edit()
        first = name_of("quadratic", "own_sgd:make")
        write("own_sgd", OPTIMIZER.replace("1.0", "2.0"))
        changed = name_of("quadratic", "own_sgd:make")
        write("own_sgd", OPTIMIZER)
        assert name_of("quadratic", "own_sgd:make") == first != changed

    def test_a_module_that_is_reloaded(self, write) -> None:
        module = write("own_loss", LOSS)
        first = digest_program(module.compute)
        Path(str(module.__file__)).write_text(LOSS.replace("1.0", "2.00"))
        assert digest_program(module.compute) == first
        importlib.reload(module)
        assert digest_program(module.compute) != first


class TestData:
    """Arrays and settings."""

    @pytest.mark.usefixtures("own_model")
    def test_another_number_in_the_data(self, name_of) -> None:
        rows = {name: array.copy() for name, array in ROWS.items()}
        register_model(rows=rows)
        first = name_of()
        rows["x"][5, 1] = 2.0
        changed = name_of()
        rows["x"][5, 1] = 1.0
        assert name_of() == first != changed

    def test_images_that_stay_on_the_host(self, write) -> None:
        write("own_loss", PLAIN_LOSS)
        first = digest_program(keep_on_host(images_task()))
        other = {"image": np.full((8, 2, 2, 1), 2, np.float32)}
        assert digest_program(keep_on_host(images_task())) == first
        assert digest_program(keep_on_host(images_task(dataset=Dataset("images", other, other)))) != first

    def test_shapes_types_and_bytes(self) -> None:
        arrays = [
            np.zeros(6, np.float32),
            np.zeros((2, 3), np.float32),
            np.zeros(6, np.int32),
            np.arange(6, dtype=np.float32),
            np.arange(12, dtype=np.float32)[::2],
            jnp.zeros(6, jnp.bfloat16),
            jnp.ones(6, jnp.bfloat16),
            jax.random.key(0),
            jax.random.key(1),
            np.zeros((0, 3), np.float32),
            np.float32(0).reshape(()),
            np.array([None]),
        ]
        assert len(set(map(digest_program, arrays))) == len(arrays)
        assert digest_program(jnp.arange(6.0)) == digest_program(np.arange(12, dtype=np.float32)[::2] / 2)

    @pytest.mark.parametrize("turned", [False, True], ids=["in_order", "transposed"])
    def test_of_large_arrays_a_sample_is_read(self, turned: bool) -> None:
        large = np.zeros((2**14, 2**11), np.uint8)
        array = large.T if turned else large
        pieces = program_digest._pieces(array)
        assert sum(piece.nbytes for piece in pieces) == 2**22
        first = digest_program(array)
        for row, column in ((0, 0), (-1, -1)):
            large[row, column] = 1
            assert digest_program(array) != first
            large[row, column] = 0
        large[7000:7100] = 1
        assert digest_program(array) != first

    def test_settings_that_functions_hold(self) -> None:
        def make(noise: float, names: tuple[str, ...] = ()) -> Callable[[float], Any]:
            return lambda x: (x + noise, names)

        functions = (make(0.1), make(0.2), make(0.1, ("a",)), make(0.1, ("b",)))
        assert len(set(map(digest_program, functions))) == 4
        assert digest_program(make(0.1)) == digest_program(functions[0])

    def test_what_an_object_has_kept_for_nothing_is_no_fault(self) -> None:
        class Loss:
            last: Any = None

            def __call__(self, x):
                self.last = x
                return x.sum()

        loss = Loss()
        jax.eval_shape(loss, jnp.ones(3))
        assert isinstance(loss.last, Tracer)
        assert digest_program(loss) == digest_program(loss)


class TestProgram:
    """This package, others, and settings."""

    def name(self, **changes) -> str:
        task = make_quadratic()
        [group] = make_suite().groups("quadratic")
        facts = dataclasses.replace(describe_task(task), **changes)
        return name_checkpoints(group, facts, 0, [digest_task("quadratic", task)])

    def test_facts_versions_and_precision_are_in_the_name(self, monkeypatch) -> None:
        names = [self.name(), self.name(batch_size=7), self.name(train_examples=3), self.name(dataset="x")]
        with jax.default_matmul_precision("BF16_BF16_F32"):
            names.append(self.name())
        with jax.enable_x64(True):
            names.append(self.name())
        monkeypatch.setattr(checkpoint_names, "__version__", "9.9")
        names.append(self.name())
        monkeypatch.setattr(checkpoint_names, "version", lambda package: f"{package} 9")
        names.append(self.name())
        assert len(set(names)) == len(names) == 8
        monkeypatch.undo()
        assert self.name() == names[0]

    def test_an_update_of_the_package_changes_the_name(self, name_of, tmp_path, monkeypatch) -> None:
        (tmp_path / "part").mkdir()
        places = [tmp_path / "part" / "rule.py", tmp_path / "part" / "renamed.py"]
        monkeypatch.setattr(program_digest, "PACKAGE", tmp_path)
        names = []
        for place, text in ((places[0], "a = 1"), (places[0], "a = 2"), (places[1], "a = 2")):
            for other in places:
                other.unlink(missing_ok=True)
            place.write_text(text)
            digest_package.cache_clear()  # another process
            names.append(name_of("quadratic"))
        place.write_text("a = 3")
        assert name_of("quadratic") == names[-1]  # it was imported before
        digest_package.cache_clear()
        assert len(set(names)) == 3

    def test_another_process_finds_the_same_name(self) -> None:
        program = (
            "from celo2.tasks.registry import make_task\n"
            "from celo2.baselines import find_optimizer\n"
            "from celo2.evaluate.suite.program_digest import digest_package, digest_program\n"
            "parts = make_task('digits-mlp'), find_optimizer('celo2')\n"
            "found = digest_package(), digest_program(*parts)"
        )
        here: dict[str, Any] = {}
        exec(program, here)
        done = subprocess.run(
            [sys.executable, "-c", f"{program}\nprint(*found)"],
            env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert tuple(done.stdout.split()) == here["found"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a"}, {"b"}),
        (Path("a"), Path("b")),
        (SimpleNamespace(w=1), SimpleNamespace(w=2)),
        ((lambda x, y: [x, y, x])([1], [2]), (lambda x, y: [x, y, y])([1], [2])),
    ],
    ids=["set", "path", "namespace", "order"],
)
def test_settings_of_other_kinds_count_too(one: Any, other: Any) -> None:
    assert digest_program(one) != digest_program(other)
    assert digest_program(one) == digest_program(copy.deepcopy(one))
