"""Options of the commands: one name has one meaning, and lists are written alike."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path

import pytest
import tyro

from celo2 import cli
from celo2.commands import meta_train
from celo2.commands._arguments import make_registry
from celo2.commands.bench import BenchCommand
from celo2.commands.compare import CompareOptions
from celo2.commands.evaluate import EvaluateCommand, _suite
from celo2.commands.meta_train import Machine, MetaTrainCommand
from celo2.commands.probe import ProbeCommand
from celo2.commands.report import ReportCommand
from celo2.commands.search import SearchCommand
from celo2.meta.probe import ProbeConfig
from celo2.meta.run.options import TrainOptions
from celo2.meta.search.run import SearchConfig

SHARED = (
    "seeds",
    "steps",
    "devices",
    "out",
    "task_set",
    "json",
    "tasks",
    "optimizers",
    "num_learning_rates",
    "max_memory",
)
COMMANDS = (
    BenchCommand,
    CompareOptions,
    EvaluateCommand,
    Machine,
    MetaTrainCommand,
    TrainOptions,
    ProbeCommand,
    ProbeConfig,
    ReportCommand,
    SearchCommand,
    SearchConfig,
)


def _kind(hint: object) -> object:
    """The type of an option, whether it may be left out or not."""
    if isinstance(hint, types.UnionType):
        [hint] = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return hint


def test_an_option_has_one_type_in_all_commands() -> None:
    kinds: dict[str, dict[object, str]] = {name: {} for name in SHARED}
    for command in COMMANDS:
        hints = typing.get_type_hints(command)
        for field in dataclasses.fields(command):
            if field.name in SHARED:
                kinds[field.name][_kind(hints[field.name])] = command.__name__
    assert {name: found for name, found in kinds.items() if len(found) != 1} == {}


def _evaluate(*words: str) -> EvaluateCommand:
    return tyro.cli(EvaluateCommand, args=["--out", "out", *words], registry=make_registry())


@pytest.mark.parametrize(
    "words", [["celo2,adamw"], ["celo2", "adamw"], ["celo2,", "adamw"], ["celo2, adamw"]], ids=str
)
def test_names_are_written_with_commas_or_spaces(words: list[str]) -> None:
    assert _evaluate("--optimizers", *words, "--seeds", "3").optimizers == ("celo2", "adamw")


def test_learning_rates_are_rates_of_all_or_by_name() -> None:
    command = _evaluate(
        "--tasks", "quadratic", "--optimizers", "sgdm,adamw", "--learning-rates", "1e-3,1e-2", "sgdm=0.5"
    )
    groups = {group.optimizer: group.learning_rates for group in _suite(command).groups("quadratic")}
    assert groups == {"sgdm": (0.5,), "adamw": (1e-3, 1e-2)}


def test_num_learning_rates_are_of_the_default_grids() -> None:
    command = _evaluate("--tasks", "quadratic", "--optimizers", "sgdm,adamw", "--num-learning-rates", "3")
    assert [len(group.learning_rates) for group in _suite(command).groups("quadratic")] == [3, 3]


@pytest.mark.parametrize("name", ["bench", "compare", "evaluate", "meta-train", "report"])
def test_help_says_what_is_meant_where_nothing_is_given(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default:" in text or "(at least one)" in text
    for noise in ("{None}", "(default: )", "(default: None)"):
        assert noise not in text


def test_recipes_options_keep_their_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(meta_train, "meta_train", lambda config, _: seen.append(config) or tmp_path)
    words = ["--rule-options", "initial_rms_decays=[0.9]", "initial_momentum_decays=[0.9,0.99,0.999]"]
    assert meta_train.main(["--out", str(tmp_path / "out"), "--devices", "1", *words]) == 0
    assert list(seen[0].rule_options) == words[1:]


def test_out_is_a_folder() -> None:
    assert _evaluate().out == Path("out")
