from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from celo2._utils.locks import FolderInUseError
from celo2.baselines import find_optimizer
from celo2.evaluate.suite import local as module
from celo2.evaluate.suite.local import Failure, GroupProgress, train_groups
from celo2.evaluate.suite.results import RunResult
from celo2.evaluate.suite.run import SuiteProgress, run_suite
from celo2.evaluate.suite.spec import Suite
from celo2.evaluate.suite.store import RunStore
from helpers.run_results import make_random_run

SUITE = Suite(
    name="a-suite",
    tasks=("digits-mlp", "quadratic"),
    optimizers=("adamw", "lion"),
    num_learning_rates=2,
    seeds=2,
    steps=20,
)


class FakeEngine:
    """Makes up runs; `trained` collects what it was asked for, and it stops as `stop_after` says."""

    def __init__(self, stop_after: int = 100, broken: str = "") -> None:
        self.trained: list[tuple] = []
        self._stop_after, self._broken = stop_after, broken

    def __call__(self, tasks, _, on_progress) -> Iterator[list[RunResult] | Failure]:
        for group in (group for groups in tasks for group in groups):
            if len(self.trained) == self._stop_after:
                raise KeyboardInterrupt
            on_progress(GroupProgress(group, None))
            self.trained.append((group.task, group.optimizer, len(group.specs())))
            if group.optimizer == self._broken:
                yield Failure(group, "it broke")
            else:
                yield [make_random_run(**vars(spec)) for spec in group.specs()]


def test_a_stopped_suite_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_suite(SUITE, RunStore(tmp_path), engine=FakeEngine(stop_after=3))
    assert len(RunStore(tmp_path).load().results) == 12
    engine = FakeEngine()
    assert run_suite(SUITE, RunStore(tmp_path), engine=engine) == []
    assert engine.trained == [("quadratic", "lion", 4)]
    assert len(RunStore(tmp_path).load().results) == SUITE.count_runs() == 16


def test_more_seeds_train_only_what_is_new(tmp_path: Path) -> None:
    run_suite(SUITE, RunStore(tmp_path), engine=FakeEngine())
    engine = FakeEngine()
    more = Suite(**{**vars(SUITE), "seeds": 3, "tasks": ("quadratic",)})
    run_suite(more, RunStore(tmp_path), engine=engine)
    assert engine.trained == [("quadratic", "adamw", 2), ("quadratic", "lion", 2)]


def test_what_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    [one, other] = run_suite(SUITE, RunStore(tmp_path), engine=FakeEngine(broken="lion"))
    assert (one.group.task, other.group.task, one.reason) == ("digits-mlp", "quadratic", "it broke")
    engine = FakeEngine()
    assert run_suite(SUITE, RunStore(tmp_path), engine=engine) == []
    assert {optimizer for _, optimizer, _ in engine.trained} == {"lion"}


def _train_bowl(group):
    """Runs whose final losses are lowest at the learning rate 0.01."""
    return [
        dataclasses.replace(
            run := make_random_run(**vars(spec)),
            valid_loss=np.full_like(run.valid_loss, 1 + abs(np.log(spec.learning_rate / 0.01))),
        )
        for spec in group.specs()
    ]


def test_refinement_tries_two_rates_around_the_best_of_each(tmp_path: Path) -> None:
    suite = dataclasses.replace(SUITE, num_learning_rates=3, refine=True)
    grids = {group.optimizer: group.learning_rates for group in suite.groups("quadratic")}
    assert grids == {"adamw": (0.0003, 0.00548, 0.1), "lion": (3e-05, 0.000949, 0.03)}

    def engine(tasks, _, __):
        for group in (group for groups in tasks for group in groups):
            asked.append((group.task, group.optimizer, group.learning_rates))
            yield _train_bowl(group)

    asked: list[tuple] = []
    seen: list[SuiteProgress] = []
    assert run_suite(suite, RunStore(tmp_path), engine=engine, on_progress=seen.append) == []
    assert asked[4:] == [
        ("digits-mlp", "adamw", (0.00128, 0.0234)),
        ("digits-mlp", "lion", (0.00534, 0.169)),  # as far beyond the edge as inside
        ("quadratic", "adamw", (0.00128, 0.0234)),
        ("quadratic", "lion", (0.00534, 0.169)),
    ]
    total = suite.count_runs()
    assert {progress.total for progress in seen} == {total}
    assert len(RunStore(tmp_path).load().results) == total == 2 * 2 * (3 + 2) * 2
    asked.clear()
    assert run_suite(suite, RunStore(tmp_path), engine=engine) == []
    assert asked == []


def test_refinement_takes_what_is_stored_where_a_group_is_trained_again(tmp_path: Path) -> None:
    """More rates and seeds train the smallest rectangle of the missing runs, which has stored ones in it."""
    few = dataclasses.replace(SUITE, tasks=("quadratic",), num_learning_rates=4, seeds=1)
    many = dataclasses.replace(few, num_learning_rates=7, seeds=3, refine=True)

    def engine(tasks, _, __):
        for group in (group for groups in tasks for group in groups):
            yield _train_bowl(group)

    run_suite(few, RunStore(tmp_path), engine=engine)
    assert run_suite(many, RunStore(tmp_path), engine=engine) == []
    specs = [result.spec for result in RunStore(tmp_path).load().results]
    assert len(specs) == len(set(specs)) == many.count_runs()


def test_refinement_leaves_named_rates_and_what_diverged_everywhere_alone(tmp_path: Path) -> None:
    suite = dataclasses.replace(SUITE, tasks=("quadratic",), rates_of={"adamw": (0.1, 0.2)}, refine=True)

    def engine(tasks, _, __):
        for group in (group for groups in tasks for group in groups):
            yield [dataclasses.replace(run, diverged_at=3) for run in _train_bowl(group)]

    run_suite(suite, RunStore(tmp_path), engine=engine)
    assert len(RunStore(tmp_path).load().results) == 2 * (2 + 2)


def test_a_refused_suite_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    missing = Suite(**{**vars(SUITE), "optimizers": ("celo2:nothing.safetensors",)})
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(FileNotFoundError):
            run_suite(missing, RunStore(folder), engine=FakeEngine())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["celo2 evaluate", "celo2 compare"])
def test_a_second_process_is_told_the_command_that_has_the_folder(tmp_path: Path, command: str) -> None:
    def engine(*_):
        with pytest.raises(FolderInUseError, match=rf"is in use by {command}, process"):
            run_suite(SUITE, RunStore(tmp_path), engine=FakeEngine())
        refused.append(True)
        yield from ()

    refused: list[bool] = []
    run_suite(SUITE, RunStore(tmp_path), engine=engine, command=command)
    assert refused


def test_runs_of_another_length_are_refused(tmp_path: Path) -> None:
    run_suite(SUITE, RunStore(tmp_path), engine=FakeEngine())
    longer = Suite(**{**vars(SUITE), "steps": 30})
    with pytest.raises(ValueError, match="has runs of digits-mlp of 20 steps, and now 30 were asked for"):
        run_suite(longer, RunStore(tmp_path), engine=FakeEngine())


@pytest.mark.usefixtures("standard_promotion")
def test_a_task_on_other_data_fails_untrained_and_the_others_are_trained(tmp_path: Path) -> None:
    one_task = Suite(**{**vars(SUITE), "tasks": ("quadratic",), "seeds": 1})
    run_suite(one_task, RunStore(tmp_path), engine=FakeEngine())  # on a made-up set
    failures = run_suite(SUITE, RunStore(tmp_path))
    assert [(failure.group.task, failure.group.optimizer) for failure in failures] == [
        ("quadratic", "adamw"),
        ("quadratic", "lion"),
    ]
    assert "has runs of it on a-set, and now it trains on quadratic" in failures[0].reason
    assert len(RunStore(tmp_path).load().results) == 4 + 8


def test_runs_of_other_weights_are_refused(tmp_path: Path) -> None:
    shipped = find_optimizer("celo2").weights
    learned = Suite(**{**vars(SUITE), "optimizers": ("celo2", "adamw")})
    run_suite(learned, RunStore(tmp_path), engine=FakeEngine())  # which makes up runs of no weights
    with pytest.raises(ValueError, match=rf"runs of celo2 with other weights .* now \({shipped[:16]}"):
        run_suite(learned, RunStore(tmp_path), engine=FakeEngine())
    elsewhere = Suite(**{**vars(learned), "tasks": ("fashion-mlp",)})
    with pytest.raises(ValueError, match="with other weights"):
        run_suite(elsewhere, RunStore(tmp_path), engine=FakeEngine())


def test_weights_that_change_meanwhile_are_a_failure() -> None:
    groups = [group._replace(weights="others") for group in SUITE.groups("quadratic")[:1]]
    [failure] = train_groups(groups)
    assert isinstance(failure, Failure)
    assert "weights of adamw have changed since the suite began" in failure.reason


def test_progress_counts_runs(tmp_path: Path) -> None:
    seen: list[SuiteProgress] = []
    run_suite(SUITE, RunStore(tmp_path), engine=FakeEngine(), on_progress=seen.append)
    assert [(p.done, p.total) for p in seen if p.current is None] == [(n, 16) for n in (0, 4, 8, 12, 16)]


@pytest.mark.usefixtures("standard_promotion")
def test_groups_are_trained_and_described() -> None:
    seen: list[GroupProgress] = []
    groups = SUITE.groups("quadratic")
    outcomes = list(train_groups(groups, on_progress=seen.append))
    for group, results in zip(groups, outcomes, strict=True):
        assert isinstance(results, list)
        assert [result.spec for result in results] == group.specs()
        for result in results:
            assert (result.facts.name, result.facts.num_parameters) == ("quadratic", 64 * 32)
            assert result.train_steps[-1] == result.valid_steps[-1] == 20
            assert np.isfinite(result.train_loss).all()
            assert 0 < result.seconds_per_step < 10
            assert result.state_bytes >= 4 * 64 * 32
            assert result.weights == ""
            assert result.timing.startswith("share of 4 runs")
    assert seen[0].progress is None
    assert seen[-1].progress is not None
    assert seen[-1].progress.done == 1.0


@pytest.mark.usefixtures("standard_promotion")
def test_one_broken_optimizer_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    find = module.find_optimizer

    def broken(name: str, **options):
        if name == "adamw":
            raise RuntimeError("no such thing")
        return find(name, **options)

    monkeypatch.setattr(module, "find_optimizer", broken)
    failure, results = train_groups(SUITE.groups("quadratic"))
    assert isinstance(failure, Failure)
    assert failure.reason == "RuntimeError: no such thing"
    assert len(results) == 4


def test_a_task_without_its_data_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise FileNotFoundError("no local copy of the set")

    monkeypatch.setattr(module, "make_task", missing)
    outcomes = list(train_groups(SUITE.groups("quadratic")))
    assert [isinstance(outcome, Failure) and outcome.reason for outcome in outcomes] == [
        "FileNotFoundError: no local copy of the set"
    ] * 2
