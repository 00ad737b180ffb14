"""What `celo2 meta-train` makes of its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from celo2.commands import meta_train as command
from celo2.meta.config import MetaConfig


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """Nothing is trained; the recipes and options that would be."""
    calls: list = []

    def note(config: MetaConfig, options: object) -> Path:
        calls.append((config, options))
        return Path("weights")

    monkeypatch.setattr(command, "meta_train", note)
    return calls


@pytest.fixture
def recipe_of(asked: list, tmp_path: Path) -> Callable[..., MetaConfig]:
    """A function: words → the recipe that would run."""

    def run(*words: str) -> MetaConfig:
        assert command.main([*words, "--out", str(tmp_path / "out"), "--devices", "1"]) == 0
        return asked[-1][0]

    return run


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a run, as far as its recipe goes."""
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = MetaConfig(variant="celo2-base", sigma=0.02, datasets=("digits", "mnist"), seed=7)
    (folder / "config.json").write_text(recipe.to_json())
    return folder


def test_without_words_the_recipe_is_the_default(recipe_of) -> None:
    assert recipe_of() == MetaConfig()


@pytest.mark.parametrize("form", ["--config FILE", "--config=FILE"])
def test_config_repeats_the_recipe_of_a_run(recipe_of, saved: Path, form: str) -> None:
    recipe = recipe_of(*form.replace("FILE", str(saved / "config.json")).split())
    assert recipe == MetaConfig.load(saved / "config.json")


def test_options_beside_config_replace_those_in_the_file(recipe_of, saved: Path) -> None:
    recipe = recipe_of("--seed", "8", "--config", str(saved / "config.json"), "--variant", "celo2")
    assert (recipe.seed, recipe.variant, recipe.sigma) == (8, "celo2", 0.02)
    assert recipe.datasets == ("digits", "mnist")


@pytest.mark.parametrize(("kept", "given"), [(True, ()), (False, ()), (True, ("--start", "adam"))])
def test_repeated_run_starts_from_the_copy_beside_the_file(recipe_of, saved: Path, kept, given) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({"start": "elsewhere.safetensors"}))
    if kept:
        (saved / "start.safetensors").touch()
    expected = "adam" if given else str(saved / "start.safetensors") if kept else "elsewhere.safetensors"
    assert recipe_of("--config", str(path), *given).start == expected


def test_resumed_run_keeps_the_start_of_its_own_recipe(asked: list, saved: Path) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({"start": "elsewhere.safetensors"}))
    (saved / "start.safetensors").touch()
    words = ["--config", str(path), "--out", str(saved), "--resume", "--devices", "1"]
    assert command.main(words) == 0
    assert asked[-1][0].start == "elsewhere.safetensors"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ('{"sigme": 1}', "did you mean 'sigma'")],
    ids=["none", "bad"],
)
def test_unusable_file_is_an_error(asked: list, tmp_path: Path, capsys, text, message: str) -> None:
    path = tmp_path / "recipe.json"
    if text is not None:
        path.write_text(text)
    assert command.main(["--config", str(path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert str(path) in printed
    assert not asked


def test_config_without_a_file_is_an_error(asked: list, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--out", str(tmp_path), "--config"])
    assert stop.value.code == 2
    assert not asked
