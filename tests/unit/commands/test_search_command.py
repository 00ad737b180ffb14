"""`celo2 search`: what it makes of its words and of `--config`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from celo2 import load_checkpoint
from celo2.commands import search as command
from celo2.meta.search.run import SearchConfig
from celo2.meta.task_sets import load_task_set
from helpers.search_sets import TINY_SET

FOLDER = Path(__file__).parents[3] / "recipes"
RECIPES = [path for path in sorted(FOLDER.rglob("*.json")) if "task_set" in json.loads(path.read_text())]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SearchConfig, Path, int]]:
    """Nothing is searched; the settings, folders and lengths that would be."""
    calls: list[tuple[SearchConfig, Path, int]] = []

    def note(config: SearchConfig, out: Path, *, generations: int, **_: object) -> None:
        calls.append((config, out, generations))

    monkeypatch.setattr(command, "search", note)
    return calls


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The config of a search."""
    path = tmp_path / "config.json"
    path.write_text(SearchConfig(variant="celo2-base", population=6, start=(0.1,) * 22, seed=7).to_json())
    return path


def _record(out: Path) -> list[dict]:
    lines = (out / "generations.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


@pytest.mark.usefixtures("standard_promotion")
def test_search_from_a_config_equals_the_one_that_wrote_it(tmp_path: Path) -> None:
    tasks, one, two = tmp_path / "tiny.toml", tmp_path / "one", tmp_path / "two"
    tasks.write_text(TINY_SET)
    words = ["--set", str(tasks), "--tasks-per-generation", "1", "--population", "4", "--seed", "3"]
    length = ["--generations", "2"]
    assert command.main([*words, *length, "--variant", "celo2-base", "--out", str(one)]) == 0
    assert command.main(["--config", str(one / "config.json"), *length, "--out", str(two)]) == 0
    assert (two / "config.json").read_bytes() == (one / "config.json").read_bytes()
    assert _record(two) == _record(one)
    assert len(_record(one)) == 2
    name = "weights/celo2-base-000002-averaged.safetensors"
    first, second = (load_checkpoint(folder / name) for folder in (one, two))
    assert first.config == second.config
    for array, other in zip(first.arrays.values(), second.arrays.values(), strict=True):
        np.testing.assert_array_equal(array, other)


def test_without_words_the_settings_are_the_defaults(asked: list, tmp_path: Path) -> None:
    assert command.main(["--out", str(tmp_path)]) == 0
    assert asked == [(SearchConfig(), tmp_path, 100)]


def test_options_beside_config_replace_those_in_the_file(asked: list, saved: Path, tmp_path: Path) -> None:
    words = ["--seed", "8", "--config", str(saved), "--set", "choosing", "--generations", "9"]
    assert command.main([*words, "--out", str(tmp_path)]) == 0
    expected = SearchConfig(
        variant="celo2-base", population=6, start=(0.1,) * 22, seed=8, task_set="choosing"
    )
    assert asked == [(expected, tmp_path, 9)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_taken_as_they_are(asked: list, path: Path, tmp_path: Path) -> None:
    assert command.main(["--config", str(path), "--generations", "56", "--out", str(tmp_path)]) == 0
    [(config, _, generations)] = asked
    assert json.loads(config.to_json()) == json.loads(path.read_text())
    assert generations == 56
    assert path.stem.startswith(config.variant)
    assert config.set_digest == load_task_set(config.task_set).digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(None, "No such file", id="no-file"),
        pytest.param("[1]", "object", id="no-object"),
        pytest.param('{"populaton": 12}', "did you mean 'population'", id="unknown"),
        pytest.param('{"zzz": 12}', "There are variant, task_set", id="unlike-any"),
        pytest.param('{"population": "12"}', 'population must be a whole number, got "12"', id="text"),
        pytest.param('{"population": true}', "population must be a whole number, got true", id="truth"),
        pytest.param('{"start": ["a"]}', "start must be a list of numbers", id="list"),
        pytest.param('{"start": [0.5]}', "start must be 22 finite numbers, got 1", id="length"),
        pytest.param('{"population": 2}', "expected population ≥ 4", id="range"),
        pytest.param('{"variant": "celo"}', "predecessors are trained by celo2 meta-train", id="variant"),
    ],
)
def test_unusable_config_is_an_error(asked: list, tmp_path: Path, capsys, text, message: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    assert command.main(["--config", str(path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert str(path) in printed
    assert not asked


@pytest.mark.parametrize("words", [["--config"], ["--variant", "celo"]], ids=" ".join)
def test_unusable_words_are_an_error(asked: list, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--out", str(tmp_path), *words])
    assert stop.value.code == 2
    assert not asked


def test_setting_out_of_its_range_is_an_error(asked: list, tmp_path: Path, capsys) -> None:
    assert command.main(["--out", str(tmp_path), "--population", "2"]) == 2
    assert "expected population ≥ 4" in capsys.readouterr().err
    assert not asked
