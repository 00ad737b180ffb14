"""`celo2 compare` from its command line to its files."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from celo2.commands.compare import main

ARGUMENTS = (
    *("--task", "digits-mlp", "--optimizers", "sgd,adamw", "--steps", "30", "--seeds", "2"),
    *("--learning-rates", "sgd=0.05,1e6", "adamw=1e-3,1e-2"),
)


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def run(standard_promotion, tmp_path_factory):
    """The folder and the output of one comparison."""
    out = tmp_path_factory.mktemp("compare")
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main([*ARGUMENTS, "--out", str(out)]) == 0
    return out, shown.getvalue()


@pytest.fixture(scope="module")
def folder(run):
    return run[0]


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_writes_the_four_files(folder):
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "curves.png",
        "results.json",
        "curves.npz",
    }


def test_results_have_the_promised_fields(results):
    assert results["schema"] == "celo2-compare/1"
    assert results["task"]["dataset"] == "digits-8x8"
    assert results["settings"]["steps"] == 30
    assert results["unfinished"] == []
    assert {"celo2", "jax", "optax", "commit", "processor", "devices"} <= set(results["environment"])
    for entry in results["optimizers"]:
        assert np.shape(entry["final_valid_accuracy"]) == (2, 2)
        assert entry["seconds_per_step"] > 0
    sgd, adamw = results["optimizers"]
    assert sgd["learning_rates"] == [0.05, 1e6]
    # AdamW keeps two moments, and a few counts
    assert 0 < adamw["state_bytes"] - 8 * results["task"]["num_parameters"] <= 16


def test_training_lowers_the_loss_and_divergence_is_marked(results):
    sgd, adamw = results["optimizers"]
    assert np.min(adamw["final_train_loss"]) < 0.9 * results["task"]["initial_loss"]
    assert sgd["best_learning_rate"] == 0.05
    assert np.min(sgd["diverged_at"][1]) >= 0
    assert np.max(sgd["diverged_at"][0]) == -1
    assert any(caveat.startswith("sgd diverged at learning rate 1e+06") for caveat in results["caveats"])


def test_same_command_gives_the_same_curves(folder, tmp_path):
    assert main([*ARGUMENTS, "--out", str(tmp_path)]) == 0
    with np.load(folder / "curves.npz") as first, np.load(tmp_path / "curves.npz") as second:
        assert set(first) == set(second)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize(
    "text",
    ["sgd: step 30/30", "100 %", "0/4", "2/4", "data: digits-8x8", "note: sgd diverged", "lowest final"],
)
def test_shows_progress_table_and_data_set(run, text):
    assert text in run[1]


def test_shows_the_paths_of_the_files(run):
    folder, shown = run
    for path in folder.iterdir():
        assert str(path) in shown


def test_default_folder_names_task_and_time(monkeypatch, tmp_path, instant_training):
    monkeypatch.chdir(tmp_path)
    assert main(["--task", "digits-mlp", "--optimizers", "sgd"]) == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("compare-digits-mlp-")


def test_interrupt_writes_and_shows_what_is_finished(interrupt_training, tmp_path, capsys):
    interrupt_training(1)
    assert main(["--task", "digits-mlp", "--optimizers", "sgd,adamw", "--out", str(tmp_path)]) == 130
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in found["optimizers"]] == ["sgd"]
    assert found["unfinished"] == ["adamw"]
    assert "interrupted before adamw finished" in capsys.readouterr().out


def test_interrupt_before_anything_is_finished_writes_nothing(interrupt_training, tmp_path, capsys):
    interrupt_training(0)
    out = tmp_path / "out"
    assert main(["--task", "digits-mlp", "--optimizers", "sgd,adamw", "--out", str(out)]) == 130
    assert not out.exists()
    assert "nothing to report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "adamww"], "did you mean 'adamw'"),
        (["--task", "digits"], "digits-mlp"),
        (["--learning-rates", "sgd=fast"], "expected learning rates such as"),
        (["--steps", "-3"], "steps must be a whole number from 0"),
        (["--nonsense"], "nonsense"),
    ],
    ids=["optimizer", "task", "rates", "steps", "option"],
)
def test_wrong_usage_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert message in " ".join((shown.out + shown.err).replace("│", " ").split())


def test_missing_weights_are_an_error_of_one_line(capsys):
    assert main(["--optimizers", "celo2:absent.safetensors"]) == 2
    assert "error: no weights at 'absent.safetensors'" in capsys.readouterr().err


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for text in ("celo2 compare --quick", "fashion-mlp", "celo2-base", "--learning-rates", "muon"):
        assert text in shown
