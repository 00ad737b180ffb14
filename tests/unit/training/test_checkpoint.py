"""Checkpoints within runs: a stopped run ends with the numbers of one that nothing has disturbed."""

from __future__ import annotations

import dataclasses
import errno
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.baselines import find_optimizer
from celo2.evaluate.environment import describe_task
from celo2.evaluate.suite.checkpoint_names import digest_optimizer, digest_task, name_checkpoints
from celo2.evaluate.suite.local import Failure, Machine, train_groups
from celo2.evaluate.suite.run import CHECKPOINTS, run_suite
from celo2.evaluate.suite.spec import Group, Suite
from celo2.evaluate.suite.store import RunStore
from celo2.tasks.base import Task
from celo2.tasks.quadratic import make_quadratic
from celo2.training.checkpoint import Checkpoints
from celo2.training.grid import RunGrid
from celo2.training.runner import GridRunner, Progress
from celo2.training.task_step import SharedTask

STEPS = 23  # not a multiple of the number of validations
SUITE = Suite(
    name="one", tasks=("quadratic",), optimizers=("sgdm",), num_learning_rates=2, seeds=1, steps=STEPS
)


def make_sgd(schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD whose momentum is of a type that NumPy's files do not know."""
    return optax.sgd(schedule, momentum=0.9, accumulator_dtype=jnp.bfloat16)


@pytest.fixture(scope="module")
def runner() -> GridRunner:
    task: Task = make_quadratic()
    return GridRunner(SharedTask(task), make_sgd, (0.01, 0.1), seeds=(0, 1), steps=STEPS)


@pytest.fixture(scope="module")
def undisturbed(standard_promotion, runner: GridRunner) -> RunGrid:
    return runner.train()


def stop_at(step: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.step >= step:
            raise KeyboardInterrupt

    return stop


def assert_same(found: RunGrid, expected: RunGrid) -> None:
    for name in ("train_loss", "valid_loss", "valid_steps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.usefixtures("standard_promotion")
class TestRuns:
    """Of `GridRunner`."""

    @pytest.mark.parametrize("step", [3, 12, STEPS], ids=["first-piece", "middle", "last-piece"])
    def test_a_stopped_run_goes_on_to_the_same_numbers(self, step, runner, undisturbed, tmp_path) -> None:
        checkpoints = Checkpoints(tmp_path / "here", min_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            runner.train(stop_at(step), checkpoints=checkpoints)
        seen: list[Progress] = []
        assert_same(runner.train(seen.append, checkpoints=checkpoints), undisturbed)
        assert [progress.step for progress in seen] == undisturbed.valid_steps.tolist()

    def test_steps_before_a_checkpoint_are_not_taken_again(self, runner, tmp_path, monkeypatch) -> None:
        checkpoints = Checkpoints(tmp_path, min_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            runner.train(stop_at(12), checkpoints=checkpoints)
        program = runner._program._task
        taken: list[int] = []

        def differentiate(feed, params, seeds, count, train):
            taken.append(int(count))
            return program.differentiate(feed, params, seeds, count, train)

        monkeypatch.setattr(runner._program, "_task", program._replace(differentiate=differentiate))
        runner.train(checkpoints=checkpoints)
        assert taken == list(range(12, STEPS))

    def test_short_runs_write_nothing(self, runner, tmp_path) -> None:
        runner.train(checkpoints=Checkpoints(tmp_path / "here"))
        assert not (tmp_path / "here").exists()

    def test_other_learning_rates_have_checkpoints_of_their_own(self, runner, tmp_path) -> None:
        checkpoints = Checkpoints(tmp_path, min_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            runner.train(stop_at(12), checkpoints=checkpoints)
        rates = (0.02, 0.2)
        found = runner.train(checkpoints=checkpoints, learning_rates=rates)
        assert_same(found, runner.train(learning_rates=rates))

    @pytest.mark.parametrize("keep", [0, 100, 0.5], ids=["empty", "short", "half"])
    def test_a_damaged_checkpoint_is_told_and_not_used(self, keep, runner, undisturbed, tmp_path) -> None:
        checkpoints = Checkpoints(tmp_path, min_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            runner.train(stop_at(12), checkpoints=checkpoints)
        [path] = tmp_path.glob("*.npz")
        content = path.read_bytes()
        path.write_bytes(content[: keep if keep != 0.5 else len(content) // 2])
        with pytest.warns(UserWarning, match="cannot be used .* start from the beginning"):
            assert_same(runner.train(checkpoints=checkpoints), undisturbed)

    def test_random_keys_in_an_optimizers_state_go_on(self, tmp_path) -> None:
        def make_noisy(schedule: optax.Schedule) -> optax.GradientTransformation:
            return optax.noisy_sgd(schedule, key=jax.random.key(7, impl="rbg"))

        noisy = GridRunner(SharedTask(make_quadratic()), make_noisy, (0.01, 0.1), steps=STEPS)
        expected = noisy.train()
        checkpoints = Checkpoints(tmp_path, min_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            noisy.train(stop_at(12), checkpoints=checkpoints)
        assert list(tmp_path.glob("*.npz"))
        assert_same(noisy.train(checkpoints=checkpoints), expected)

    def test_a_folder_that_cannot_be_made_costs_no_run(self, runner, undisturbed, tmp_path) -> None:
        (tmp_path / "file").write_text("")
        checkpoints = Checkpoints(tmp_path / "file" / "here", min_seconds=0)
        with pytest.warns(UserWarning, match="cannot be (used|written)") as told:
            assert_same(runner.train(checkpoints=checkpoints), undisturbed)
        assert sum("cannot be written" in str(one.message) for one in told) == 1

    def test_a_full_disk_costs_no_run_and_no_checkpoint(
        self, runner, undisturbed, tmp_path, monkeypatch
    ) -> None:
        def fill(*_, **__) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoints = Checkpoints(tmp_path, min_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            runner.train(stop_at(12), checkpoints=checkpoints)
        [path] = tmp_path.iterdir()
        before = path.read_bytes()
        monkeypatch.setattr(np, "savez", fill)
        with pytest.warns(UserWarning, match="cannot be written .*No space left.* training goes on") as told:
            assert_same(runner.train(checkpoints=checkpoints), undisturbed)
        assert len(told) == 1
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == before

    def test_a_resumed_run_holds_no_more_than_another(self, runner, tmp_path) -> None:
        def held(checkpoints: Checkpoints) -> int:
            """Bytes of all arrays before the last steps."""
            seen: list[int] = []

            def measure(progress: Progress) -> None:
                if progress.step < STEPS:
                    gc.collect()
                    seen.append(sum(array.nbytes for array in jax.live_arrays()))

            runner.train(measure, checkpoints=checkpoints)
            return seen[-1]

        checkpoints = Checkpoints(tmp_path, min_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            runner.train(stop_at(12), checkpoints=checkpoints)
        usual = held(Checkpoints(tmp_path / "new", min_seconds=0))  # what the stopped run left is in both
        assert held(checkpoints) == usual


def stop_group(stop: bool) -> Callable:
    """Ctrl-C when a group is more than half done."""

    def on_progress(progress) -> None:
        group = getattr(progress, "current", progress)
        if stop and group is not None and group.progress and group.progress.done > 0.5:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.usefixtures("standard_promotion")
class TestSuites:
    """Of `run_suite`."""

    def test_a_stopped_suite_goes_on_within_its_group(self, tmp_path: Path) -> None:
        machine = Machine(checkpoint_seconds=0)
        store, expected = RunStore(tmp_path / "stopped"), RunStore(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            run_suite(SUITE, store, machine=machine, on_progress=stop_group(True))
        assert list((store.folder / CHECKPOINTS).glob("*/*.npz"))
        assert store.load().results == []
        run_suite(SUITE, store, machine=machine)
        run_suite(SUITE, expected)
        for found, whole in zip(store.load().results, expected.load().results, strict=True):
            np.testing.assert_array_equal(found.train_loss, whole.train_loss)
            np.testing.assert_array_equal(found.valid_loss, whole.valid_loss)
        assert not list((store.folder / CHECKPOINTS).iterdir())
        assert not (expected.folder / CHECKPOINTS).exists()

    def test_checkpoints_stay_until_the_runs_are_kept(self, tmp_path: Path) -> None:
        [group] = SUITE.groups("quadratic")
        training = train_groups([group], Machine(checkpoints=tmp_path, checkpoint_seconds=0))
        assert len(next(training)) == 2
        assert list(tmp_path.glob("*/*.npz"))
        assert list(training) == []
        assert not list(tmp_path.iterdir())

    def test_another_source_of_ones_own_optimizer_starts_from_the_beginning(self, tmp_path, own_sgd) -> None:
        own_sgd("optax.sgd(rate)")
        suite = dataclasses.replace(SUITE, optimizers=("own_sgd:make",))
        machine = Machine(checkpoint_seconds=0)
        store, expected = RunStore(tmp_path / "stopped"), RunStore(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            run_suite(suite, store, machine=machine, on_progress=stop_group(True))
        assert len(list((store.folder / CHECKPOINTS).iterdir())) == 1
        own_sgd("optax.sgd(lambda count: 0.5 * rate(count))")
        run_suite(suite, store, machine=machine)
        run_suite(suite, expected)
        for found, whole in zip(store.load().results, expected.load().results, strict=True):
            np.testing.assert_array_equal(found.train_loss, whole.train_loss)
        assert not list((store.folder / CHECKPOINTS).iterdir())

    def test_a_finished_suite_removes_its_own_leftovers_only(self, tmp_path: Path) -> None:
        [group] = SUITE.groups("quadratic")
        store = RunStore(tmp_path)
        other = dataclasses.replace(SUITE, optimizers=("lion",))
        for suite in (SUITE, other):
            with pytest.raises(KeyboardInterrupt):
                run_suite(suite, store, machine=Machine(checkpoint_seconds=0), on_progress=stop_group(True))
        changed = group._replace(steps=STEPS + 1)
        place_of(changed, tmp_path / CHECKPOINTS).mkdir()
        assert len(list((tmp_path / CHECKPOINTS).iterdir())) == 3
        run_suite(SUITE, store)
        assert [place.name for place in (tmp_path / CHECKPOINTS).iterdir()] == [
            place_of(other.groups("quadratic")[0], tmp_path).name
        ]

    def test_what_fails_keeps_its_checkpoints(self, tmp_path: Path) -> None:
        left = place_of(SUITE.groups("quadratic")[0], tmp_path / CHECKPOINTS)
        left.mkdir(parents=True)
        failures = run_suite(
            SUITE, RunStore(tmp_path), engine=lambda tasks, *_: iter([Failure(tasks[0][0], "it broke")])
        )
        assert len(failures) == 1
        assert left.exists()


def place_of(group: Group, folder: Path) -> Path:
    """Where the checkpoints of a group of built-in code are."""
    task, spec = make_quadratic(), find_optimizer(group.optimizer)
    digests = digest_task(group.task, task), digest_optimizer(group.optimizer, spec)
    return folder / name_checkpoints(group, describe_task(task), 0, digests)


@pytest.fixture
def own_sgd(tmp_path, monkeypatch) -> Iterator[Callable[[str], None]]:
    """Writes the module `own_sgd` of somebody, whose `make` returns this."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(returned: str) -> None:
        (tmp_path / "own_sgd.py").write_text(f"import optax\n\n\ndef make(rate):\n    return {returned}\n")
        sys.modules.pop("own_sgd", None)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("own_sgd", None)
