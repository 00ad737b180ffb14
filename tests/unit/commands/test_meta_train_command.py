"""What `celo2 meta-train` makes of its words."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from celo2 import load_checkpoint
from celo2._utils.signals import Stopped
from celo2.commands import meta_train as command
from celo2.meta.config import RECIPE_ONLY, MetaConfig


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


def _start(out: Path, *words: str) -> None:
    """A run that Ctrl-C ends after its first iterations."""
    assert command.main(["--out", str(out), "--datasets", "digits", "--devices", "1", *words]) == 0


def test_resumption_needs_the_folder_alone(instant_outer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _start(
        out, "--outer-clip", "0.5", "--outer-steps", "20", "--checkpoint-every", "7", "--max-skipped", "0.5"
    )
    shutil.rmtree(out / "checkpoints" / "20")
    assert command.main(["--resume", "--out", str(out)]) == 0
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))
    assert sorted(int(path.name) for path in (out / "checkpoints").iterdir()) == [7, 14, 20]


def test_resumption_may_go_further_and_says_so(instant_outer, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    _start(out, "--outer-steps", "10")
    assert command.main(["--resume", "--out", str(out), "--outer-steps", "15"]) == 0
    assert "outer_steps: 10 before, 15 from now on" in capsys.readouterr().out
    assert json.loads((out / "options.json").read_text())["outer_steps"] == 15


def test_resumption_names_the_options_that_differ(instant_outer, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    _start(out, "--outer-steps", "10", "--outer-clip", "0.5")
    assert command.main(["--resume", "--out", str(out), "--outer-clip", "0.6", "--seed", "5"]) == 2
    printed = capsys.readouterr().err
    assert "outer_clip: 0.5 before, 0.6 now" in printed
    assert "seed: 0 before, 5 now" in printed
    assert "outer_learning_rate" not in printed


@pytest.mark.usefixtures("signals_heard")
def test_what_an_interrupt_prints_continues_the_run(
    instant_outer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a folder that a shell would take apart."""
    out = tmp_path / "a run; $(x)"
    steps = instant_outer.steps

    def interrupted(*words):
        signal.raise_signal(signal.SIGINT)
        return steps(*words)

    with monkeypatch.context() as patch:
        patch.setattr(instant_outer, "steps", interrupted)
        with pytest.raises(Stopped) as stop:
            command.main(["--out", str(out), "--datasets", "digits", "--devices", "1", "--outer-steps", "20"])
    words = shlex.split(str(stop.value).partition("continue with: ")[2])
    assert words[:2] == ["celo2", "meta-train"]
    assert command.main(words[2:]) == 0
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))


@pytest.mark.parametrize(
    "text", ["null", "[", '{"outer_steps": "many"}', '{"sinks": 3}', '{"probe": {"seeds": "x"}}']
)
def test_odd_options_are_named_with_what_to_do(instant_outer, tmp_path: Path, capsys, text: str) -> None:
    out = tmp_path / "run"
    _start(out, "--outer-steps", "10")
    (out / "options.json").write_text(text)
    assert command.main(["--resume", "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert str(out / "options.json") in printed
    assert "Remove the file" in printed


RECIPE_ONLY_VALUES = {
    "outer_weight_decay": 0.1,
    "loss_scale": "log",
    "sign_scale": 2.0,
    "sigma": 0.02,
    "unroll_law": "uniform",
    "resume_probability": 0.8,
    "expert": "muon",
    "expert_weight": 0.1,
    "reverse_steps": 5,
    "inner_clip": 1.0,
    "family_rates": ["mlp:2"],
    "adamw_lr_scale": 10.0,
    "mixture": ["none", "tensor:0.5:2"],
    "batch_size": 8,
}
BELONGING = {"expert": {"expert_weight": 0.1}, "expert_weight": {"expert": "muon"}}  # which needs which


def test_every_option_without_a_flag_is_known_here() -> None:
    assert set(RECIPE_ONLY_VALUES) == set(RECIPE_ONLY)


@pytest.mark.parametrize(("name", "value"), RECIPE_ONLY_VALUES.items(), ids=list(RECIPE_ONLY_VALUES))
def test_option_without_a_flag_is_taken_from_a_recipe_file(
    recipe_of, tmp_path: Path, capsys, name: str, value: object
) -> None:
    path, flag = tmp_path / "recipe.json", f"--{name.replace('_', '-')}"
    path.write_text(json.dumps({name: value, **BELONGING.get(name, {})}))
    recipe = recipe_of("--config", str(path), "--seed", "3")
    assert json.loads(recipe.to_json())[name] == value
    assert recipe.seed == 3
    assert command.main([flag, "1", "--out", str(tmp_path / "other")]) == 2
    assert f"{name} has no flag" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert flag not in capsys.readouterr().out


def test_documentation_lists_the_options_without_a_flag() -> None:
    page = (Path(__file__).parents[3] / "docs" / "meta_training.md").read_text()
    section = page.partition("### Only in a recipe file or in Python")[2].partition("\n#")[0]
    rows = [line.split("|")[1].strip(" `") for line in section.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(RECIPE_ONLY)


def test_run_of_a_recipe_file_trains_and_names_its_recipe(instant_outer, tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.json", tmp_path / "run"
    path.write_text(json.dumps({"batch_size": 8, "loss_scale": "log"}))
    _start(out, "--config", str(path), "--outer-steps", "10")
    recipe = MetaConfig.load(out / "config.json")
    assert (recipe.batch_size, recipe.loss_scale, recipe.datasets) == (8, "log", ("digits",))
    weights = load_checkpoint(out / "weights" / "celo2-000010.safetensors")
    assert weights.provenance["command"] == "celo2 meta-train --config config.json --outer-steps 10"
    assert command.main(["--resume", "--out", str(out), "--outer-steps", "12"]) == 0
