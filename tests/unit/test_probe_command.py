"""`celo2 probe`: which candidates it takes, what it prints and refuses; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from compare_examples import make_fake_grid

from celo2 import Weights, load_checkpoint
from celo2.commands import probe as command
from celo2.config import RuleConfig
from celo2.meta import probe
from celo2.meta.config import MetaConfig
from celo2.meta.start import make_start
from celo2.weights import save_weights


class Runner:
    """In place of `GridRunner`: the loss is read from a weight, or a half where there are none."""

    made: list[tuple[str, tuple[float, ...]]] = []  # noqa: RUF012

    def __init__(self, task, _, rates, **__) -> None:
        self.made.append((task.task.name, tuple(rates)))
        self.rates = rates

    def train(self, *, inputs):
        loss = float(inputs[0]["b2"][0]) if inputs[0] else 0.5
        return make_fake_grid([[loss]] * len(self.rates), learning_rates=self.rates)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[float, ...]]]:
    """What was compiled: tasks and rates."""
    monkeypatch.setattr(probe, "GridRunner", Runner)
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


WORDS = ["--tasks", "quadratic", "--rates", "0.1", "0.2", "--devices", "1"]


def test_every_checkpoint_of_a_run_is_scored_against_the_first(
    run: Path, made, tmp_path: Path, capsys
) -> None:
    file = tmp_path / "out.json"
    assert command.main([str(run), "adamw", *WORDS, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["candidates"]
    assert [Path(row["name"]).name for row in rows] == [
        "celo2-000000.safetensors",
        "celo2-000010.safetensors",
        "adamw",
    ]
    assert [row["score"] for row in rows] == pytest.approx([0.0, np.log(0.25), np.log(0.5)])
    assert [name for name, _ in made] == ["quadratic"] * 2  # once for the rule, once for AdamW
    assert made[0][1] == (0.1, 0.2)
    assert made[1][1] != made[0][1]
    printed = capsys.readouterr().out
    assert "0.2500 at 0.1 (lowest tried)" in printed
    assert "-1.3863" in printed


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
    tmp_path: Path, made, other: RuleConfig
) -> None:
    usual = [_save(tmp_path / f"{n}.safetensors", 1.0, RuleConfig()) for n in "ab"]
    unusual = _save(tmp_path / "other.safetensors", 1.0, other)
    assert command.main([*map(str, [*usual, unusual]), *WORDS]) == 0
    assert len(made) == 2


@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_built_in_start_is_that_of_a_run(variant: str) -> None:
    (weights,) = command.load_candidates(["adam"], variant).values()  # type: ignore[arg-type]
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
        (["adam", "--tasks", "tiny-ln"], "did you mean 'tiny-lm'"),
        (["adam", "--json", "no/such/folder.json"], "there is no folder no/such"),
        ([], "name at least one"),
    ],
    ids=["file", "task", "json", "none"],
)
def test_unusable_words_are_refused(words: list[str], message: str, capsys) -> None:
    assert command.main(words) == 2
    assert message in capsys.readouterr().err


def test_run_without_weights_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "weights").mkdir()
    assert command.main([str(tmp_path)]) == 2
    assert "no weights yet" in capsys.readouterr().err
