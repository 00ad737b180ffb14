from __future__ import annotations

import json
from pathlib import Path

import pytest

from celo2.baselines import OPTIMIZERS
from celo2.evaluate.suite.spec import SUITES, Group, Suite, load_suite

SMALL = {
    "tasks": ["digits-mlp", "quadratic"],
    "optimizers": ["adamw", "celo2"],
    "num_learning_rates": 2,
    "seeds": 2,
}


def make_suite(**changes: object) -> Suite:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in SMALL.items()}
    return Suite(**{"name": "a-suite", "steps": 10, **fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SUITES)
def test_shipped_suite_tunes_every_optimizer_alike(name: str) -> None:
    suite = load_suite(name)
    for task in suite.tasks:
        groups = suite.groups(task)
        assert {len(group.learning_rates) for group in groups} == {suite.num_learning_rates}
        assert {group.optimizer for group in groups} == set(suite.optimizers)
        assert len({group.seeds for group in groups}) == 1


def test_a_group_has_the_learning_rates_of_its_optimizer_and_every_seed() -> None:
    suite = make_suite(first_seed=5)
    group = suite.groups("quadratic")[0]
    assert group.learning_rates == OPTIMIZERS["adamw"].learning_rates(2)
    assert [(spec.learning_rate, spec.seed) for spec in group.specs()] == [
        (rate, seed) for rate in group.learning_rates for seed in (5, 6)
    ]
    assert {(spec.task, spec.optimizer, spec.steps) for spec in group.specs()} == {("quadratic", "adamw", 10)}


def test_rates_of_one_optimizer_replace_its_grid(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({**SMALL, "rates_of": {"adamw": [1e-7, 1]}}))
    found = {group.optimizer: group.learning_rates for group in load_suite(str(path)).groups("quadratic")}
    assert found == {"adamw": (1e-7, 1.0), "celo2": OPTIMIZERS["celo2"].learning_rates(2)}
    assert not load_suite(str(path), optimizers=("celo2",)).rates_of


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"sgd": (0.1,)}, "must be one of the optimizers"),
        ({"adamw": ()}, "different positive numbers"),
        ({"adamw": (0.1, 0.1)}, "different positive numbers"),
        ({"adamw": (0.1, -0.1)}, "different positive numbers"),
    ],
    ids=["another", "none", "twice", "negative"],
)
def test_unfit_rates_are_refused(rates: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite(rates_of=rates)


def test_weight_decays_are_groups_of_their_own() -> None:
    suite = make_suite(weight_decays=(0.0, 0.1))
    assert [(group.optimizer, group.weight_decay) for group in suite.groups("quadratic")] == [
        ("adamw", 0.0),
        ("adamw", 0.1),
        ("celo2", 0.0),
        ("celo2", 0.1),
    ]
    assert suite.count_runs() == 2 * 4 * 4


def test_an_optimizer_made_for_a_constant_rate_has_one() -> None:
    suite = make_suite(optimizers=("schedule-free-adamw", "adamw"), schedule="linear")
    assert [group.schedule for group in suite.groups("quadratic")] == ["constant", "linear"]


def test_steps_of_one_task() -> None:
    suite = make_suite(steps_of={"quadratic": 7})
    assert [suite.groups(task)[0].steps for task in suite.tasks] == [10, 7]


@pytest.mark.parametrize(
    ("taken", "rates", "seeds"),
    [
        ((0, 1, 2, 3), (1.0, 2.0), (0, 1)),
        ((2, 3), (2.0,), (0, 1)),
        ((1, 3), (1.0, 2.0), (1,)),
        ((), None, None),
    ],
    ids=["all", "one-rate", "one-seed", "none"],
)
def test_only_what_is_missing(taken: tuple[int, ...], rates: object, seeds: object) -> None:
    group = Group("quadratic", "adamw", (1.0, 2.0), 0.0, (0, 1), 10, "cosine")
    left = group.only([group.specs()[index] for index in taken])
    assert (left and left.learning_rates, left and left.seeds) == (rates, seeds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "tasks must be one or more different ones"),
        ({"tasks": ("quadratic", "quadratic")}, "tasks must be one or more different ones"),
        ({"tasks": ("quadratics",)}, "did you mean 'quadratic'"),
        ({"tasks": ("quadratic@tiny",)}, "has one size only"),
        ({"optimizers": ("muom",)}, "did you mean 'muon'"),
        ({"seeds": 0}, "seeds must be a whole number from 1 to 2147483647, got 0"),
        ({"weight_decays": (-0.1,)}, "weight decays must be finite and not negative"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"steps_of": {"tiny-lm": 5}}, "must be one of the tasks"),
    ],
    ids=["none", "twice", "task", "size", "optimizer", "seeds", "decay", "schedule", "steps-of"],
)
def test_a_wrong_suite_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite(**changes)


def test_a_suite_from_a_file(tmp_path: Path) -> None:
    toml = tmp_path / "mine.toml"
    toml.write_text('tasks = ["quadratic"]\noptimizers = ["adamw"]\nsteps = 5\n[steps_of]\nquadratic = 9\n')
    suite = load_suite(str(toml))
    assert (suite.name, suite.tasks, suite.groups("quadratic")[0].steps) == ("mine", ("quadratic",), 9)
    same = tmp_path / "mine.json"
    same.write_text(
        json.dumps(
            {"tasks": ["quadratic"], "optimizers": ["adamw"], "steps_of": {"quadratic": 9}, "steps": 5}
        )
    )
    assert load_suite(str(same)) == suite
    changed = load_suite(str(toml), tasks=("digits-mlp",), seeds=1)
    assert (changed.tasks, changed.seeds, changed.steps_of) == (("digits-mlp",), 1, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks = [", "cannot be read as TOML"),
        ('task = ["quadratic"]', "unknown field 'task'; did you mean 'tasks'"),
        ('tasks = ["quadratic"]', "optimizers"),
    ],
    ids=["syntax", "field", "missing"],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_suite(str(path))


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="no suite 'tinny'; did you mean 'tiny'"):
        load_suite("tinny")
