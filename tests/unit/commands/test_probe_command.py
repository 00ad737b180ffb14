"""`celo2 probe`: which candidates it takes, what it prints and refuses; nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from celo2 import Weights, load_checkpoint
from celo2.baselines import find_optimizer
from celo2.commands import probe as command
from celo2.config import RuleConfig
from celo2.meta.config import MetaConfig
from celo2.meta.inner.theta import make_start
from celo2.meta.probe import measure
from celo2.weights.checkpoint import ZooWeights, save_weights
from celo2.zoo.specs import Celo
from helpers.probe_records import TINY_SET
from helpers.run_results import make_fake_grid
from helpers.weights_examples import save_port


class Runner:
    """In place of `GridRunner`: the loss is read from a weight, or a half where there are none."""

    made: list[str] = []  # noqa: RUF012

    def __init__(self, task, *_, **__) -> None:
        self.made.append(task.task.name)
        self.initial_loss = 2.0

    def train(self, *, inputs, learning_rates):
        loss = float(inputs[0]["b2"][0]) if inputs[0] else 0.5
        return make_fake_grid([[loss, loss]] * len(learning_rates), learning_rates=learning_rates)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled: names of tasks."""
    monkeypatch.setattr(measure, "GridRunner", Runner)
    monkeypatch.setattr(Runner, "made", [])
    return Runner.made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose two checkpoints have these losses: 1.0, and 0.25."""
    for step, loss in ((0, 1.0), (10, 0.25)):
        _save(tmp_path / "run" / "weights" / f"celo2-{step:06d}.safetensors", loss, RuleConfig())
    return tmp_path / "run"


def _save(path: Path, loss: float, config: RuleConfig) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.full(shape, loss, np.float32) for name, shape in config.weight_shapes().items()}
    save_weights(path, Weights(arrays, config))
    return path


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    path = tmp_path / "bowl.toml"
    path.write_text(TINY_SET)
    return ["--set", str(path), "--devices", "1"]


def test_every_checkpoint_of_a_run_is_scored_against_the_first(
    run: Path, made, words: list[str], tmp_path: Path, capsys
) -> None:
    file, table, plot = tmp_path / "out.json", tmp_path / "table.md", tmp_path / "plot.png"
    files = ["--json", str(file), "--markdown", str(table), "--plot", str(plot)]
    assert command.main([str(run), "adamw", *words, *files]) == 0
    rows = json.loads(file.read_text())["candidates"]
    assert [Path(row["name"]).name for row in rows] == [
        "celo2-000000.safetensors",
        "celo2-000010.safetensors",
        "adamw",
    ]
    assert [row["score"] for row in rows] == pytest.approx([0.0, np.log(0.25), np.log(0.5)])
    assert made == ["quadratic"] * 2  # once for the rule, once for AdamW
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "2 seed(s): too few for a claim" in printed.out
    assert "nan" not in printed.out  # what one task cannot say is a dash
    assert "celo2-000010.safetensors, bowl: 0.2500" in printed.err
    assert "| celo2-000010 | -138.6 % | -138.6 ±0.0 | 1 of 1 |" in table.read_text()


def test_finished_tasks_are_kept_and_weights_that_changed_are_not(
    run: Path, made, words: list[str], tmp_path: Path, capsys
) -> None:
    keep = ["--out", str(tmp_path / "kept")]
    assert command.main([str(run), "adamw", *words, *keep]) == 0
    assert len(made) == 2
    assert command.main([str(run), "adamw", *words, *keep]) == 0
    assert len(made) == 2  # nothing was trained again
    _save(run / "weights" / "celo2-000010.safetensors", 0.5, RuleConfig())
    assert command.main([str(run), "adamw", *words, *keep]) == 0
    assert len(made) == 3
    assert command.main([str(run), *words, "--seeds", "3", *keep]) == 2
    assert "records of other settings" in capsys.readouterr().err


def test_interrupted_command_shows_what_is_finished(
    run: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    def interrupted(self, *, inputs, learning_rates):
        if not inputs[0]:
            raise KeyboardInterrupt
        return make_fake_grid([[1.0, 1.0]] * 2, learning_rates=learning_rates)

    monkeypatch.setattr(Runner, "train", interrupted)
    file = tmp_path / "out.json"
    assert command.main([str(run), "adamw", *words, "--json", str(file)]) == 130
    assert len(json.loads(file.read_text())["candidates"]) == 2
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other",
    [
        RuleConfig(orthogonalize=False),
        RuleConfig(ns_iters=3),
        RuleConfig(ff_hidden_size=16),
        RuleConfig(initial_momentum_decays=(0.9,), initial_adafactor_decays=(0.9,)),
    ],
    ids=["variant", "iterations", "size", "decays"],
)
def test_other_variants_and_options_have_programs_of_their_own(
    tmp_path: Path, made, words: list[str], other: RuleConfig
) -> None:
    usual = [_save(tmp_path / f"{n}.safetensors", 1.0, RuleConfig()) for n in "ab"]
    unusual = _save(tmp_path / "other.safetensors", 1.0, other)
    assert command.main([*map(str, [*usual, unusual]), *words]) == 0
    assert len(made) == 2


@pytest.mark.parametrize("name", ["adam", "start:adam"])
@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_built_in_start_is_that_of_a_run(variant: str, name: str) -> None:
    (weights,) = command.load_candidates([name], variant).values()  # type: ignore[arg-type]
    assert weights is not None
    start = make_start(MetaConfig(variant=variant, start="adam"))  # type: ignore[arg-type]
    assert weights.config.variant == variant
    np.testing.assert_array_equal(weights.arrays["w1"], start.arrays["w1"])
    shipped = load_checkpoint(variant).arrays["w1"]
    assert not np.array_equal(weights.arrays["w1"], shipped)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.safetensors"], "no weights at 'nothing.safetensors'"),
        (["adam", "--tasks", "gtp"], "did you mean 'gpt'"),
        (["adam", "--json", "no/such/folder.json"], "no/such"),
        ([], "name at least one"),
    ],
    ids=["file", "task", "json", "none"],
)
def test_unusable_words_are_refused(words: list[str], message: str, capsys) -> None:
    assert command.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["celo:theta.state", "theta.state", "celo:a/theta.state", "velo_s:owner/name"]
)
def test_predecessors_are_refused_since_they_set_their_own_rates(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Celo(lstm_size=3)
    arrays = {array: np.zeros(shape, np.float32) for array, shape in config.weight_shapes().items()}
    save_weights("theta.state", ZooWeights(arrays, config))
    assert command.main([name]) == 2
    assert (
        "sets its own step sizes, and a probe tunes a learning rate; compare it by" in capsys.readouterr().err
    )


def test_upstream_file_of_an_unknown_variant_is_refused(tmp_path: Path, capsys) -> None:
    save_weights(tmp_path / "theta.state", load_checkpoint("celo2"))
    assert command.main([str(tmp_path / "theta.state")]) == 2
    assert f"name it as celo2:{tmp_path}" in capsys.readouterr().err


def test_hub_repository_is_a_candidate_under_its_whole_name(
    made, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, table = tmp_path / "model.safetensors", tmp_path / "table.md"
    save_port(path, load_checkpoint("celo2").arrays)
    monkeypatch.setattr("celo2.weights.sources.download", lambda *_: path)
    out = ["--out", str(tmp_path / "kept"), "--markdown", str(table)]
    assert command.main(["owner/celo2", *words, *out]) == 0
    assert "| owner/celo2 |" in table.read_text()
    checksum = find_optimizer("celo2:owner/celo2").weights
    assert (tmp_path / "kept" / f"owner_celo2-{checksum[:12]}.json").exists()


def test_run_without_weights_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "weights").mkdir()
    assert command.main([str(tmp_path)]) == 2
    assert "no weights yet" in capsys.readouterr().err


def test_candidates_with_one_file_name_are_told_apart(made, words: list[str], tmp_path: Path, capsys) -> None:
    paths = [_save(tmp_path / name / "rule.safetensors", 1.0, RuleConfig()) for name in "ab"]
    table = tmp_path / "table.md"
    assert command.main([*map(str, paths), *words, "--markdown", str(table)]) == 0
    lines = table.read_text().splitlines()
    assert lines[2].split("|")[1].strip().endswith("a/rule.safetensors")
    assert lines[3].split("|")[1].strip().endswith("b/rule.safetensors")


def test_start_has_one_record_however_it_is_written(made, words: list[str], tmp_path: Path) -> None:
    out, file = tmp_path / "kept", tmp_path / "out.json"
    for name in ("adam", "start:adam"):
        assert command.main([name, *words, "--out", str(out), "--json", str(file)]) == 0
    assert len(made) == 1
    assert [path.name[:5] for path in out.iterdir() if path.name != "probe.json"] == ["adam-"]
    assert json.loads(file.read_text())["candidates"][0]["name"] == "start:adam"


@pytest.mark.parametrize("name", ["adam", "start:adam"])
def test_records_of_the_repository_are_read(made, tmp_path: Path, capsys, name: str) -> None:
    shutil.copytree(Path(__file__).parents[3] / "results" / "judging", tmp_path / "judging")
    words = ["--set", "judging", "--out", str(tmp_path / "judging"), "--devices", "1"]
    assert command.main([name, "adamw", *words]) == 0
    assert made == []  # nothing was trained again
    assert capsys.readouterr().err.count(f"{name}, ") == 9
