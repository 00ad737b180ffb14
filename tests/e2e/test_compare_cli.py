"""`celo2 compare` from its command line to its files."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from celo2.commands import report
from celo2.commands.compare import main
from celo2.evaluate import arrange, load_results

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
    return {
        name: {setting.learning_rate: runs for setting, runs in cell.settings.items()}
        for name, cell in arrange(load_results(folder).results).tasks[0].cells.items()
    }


def test_writes_runs_and_report(folder):
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"suite.json", "runs", "report.html", "curves.png", "tasks.csv", "runs.csv"}


def test_results_have_the_promised_fields(results):
    [sgd, *_] = results["sgd"][0.05]
    assert (sgd.facts.dataset, sgd.spec.steps, sgd.timing) == ("digits-8x8", 30, "alone")
    assert {"celo2", "jax", "optax", "commit", "processor", "devices"} <= set(sgd.environment)
    assert sorted(results["sgd"]) == [0.05, 1e6]
    for run in (run for rates in results.values() for runs in rates.values() for run in runs):
        assert len(run.valid_accuracy) == len(run.valid_steps)
        assert run.seconds_per_step > 0
    # AdamW keeps two moments, and a few counts
    [adamw, *_] = results["adamw"][1e-3]
    assert 0 < adamw.state_bytes - 8 * adamw.facts.num_parameters <= 16


def test_training_lowers_the_loss_and_divergence_is_marked(results):
    adamw = min(run.final_train_loss for run in results["adamw"][1e-2])
    assert adamw < 0.9 * results["adamw"][1e-2][0].facts.initial_loss
    assert all(run.diverged for run in results["sgd"][1e6])
    assert not any(run.diverged for run in results["sgd"][0.05])


def test_same_command_gives_the_same_curves(results, tmp_path):
    assert main([*ARGUMENTS, "--out", str(tmp_path)]) == 0
    for run in load_results(tmp_path).results:
        [first] = [
            one
            for one in results[run.spec.optimizer][run.spec.learning_rate]
            if one.spec.seed == run.spec.seed
        ]
        np.testing.assert_array_equal(first.train_loss, run.train_loss)
        np.testing.assert_array_equal(first.valid_loss, run.valid_loss)


def test_same_folder_trains_nothing_again_and_shows_the_same(run, capsys):
    folder, shown = run
    assert main([*ARGUMENTS, "--out", str(folder)]) == 0
    again = capsys.readouterr().out
    assert "step" not in again.split("optimizer")[0].replace("30 steps", "")
    assert again.splitlines()[-1] == shown.splitlines()[-1]


def test_begins_with_what_it_takes_and_ends_in_a_sentence(run):
    lines = run[1].splitlines()
    assert lines[0] == "digits-mlp × 2 optimizers × 2 learning rates × 2 seeds: 8 runs of 30 steps"
    [sentence] = [line for line in lines if " ends lowest on digits-mlp: validation loss " in line]
    assert lines.index(sentence) > lines.index(next(line for line in lines if line.startswith("curves")))


@pytest.mark.parametrize("text", ["sgd: step 30/30", "100 %", "0/4", "2/4", "digits-8x8", "lowest final"])
def test_shows_progress_table_and_data_set(run, text):
    assert text in run[1]


def test_shows_the_paths_of_the_files(run):
    folder, shown = run
    for name in ("report.html", "curves.png", "tasks.csv", "runs.csv"):
        assert str(folder / name) in shown


def test_training_losses_rank_where_they_are_asked_for(run, capsys):
    assert main([*ARGUMENTS, "--out", str(run[0]), "--rank-by", "training"]) == 0
    assert "ends lowest on digits-mlp: training loss" in capsys.readouterr().out
    assert report.main([str(run[0])]) == 0  # which is how it was asked for last
    assert "ends lowest on digits-mlp: training loss" in capsys.readouterr().out
    assert main([*ARGUMENTS, "--out", str(run[0])]) == 0


def test_default_folder_names_task_and_time(monkeypatch, tmp_path, instant_training):
    monkeypatch.chdir(tmp_path)
    assert main(["--task", "digits-mlp", "--optimizers", "sgd"]) == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("compare-digits-mlp-")


def test_interrupt_shows_what_is_finished_and_the_same_command_goes_on(interrupt_training, tmp_path, capsys):
    interrupt_training(1)
    words = ["--task", "digits-mlp", "--optimizers", "sgd,adamw", "--quick", "--out", str(tmp_path)]
    assert main(words) == 130
    shown = capsys.readouterr()
    assert "sgd ends lowest on digits-mlp" in shown.out
    assert f"the same command with --out {tmp_path} goes on" in shown.err
    interrupt_training(100)
    assert main(words) == 0
    assert {run.spec.optimizer for run in load_results(tmp_path).results} == {"sgd", "adamw"}


def test_interrupt_before_anything_is_finished_reports_nothing(interrupt_training, tmp_path, capsys):
    interrupt_training(0)
    out = tmp_path / "out"
    assert main(["--task", "digits-mlp", "--optimizers", "sgd,adamw", "--out", str(out)]) == 130
    assert not (out / "report.html").exists()
    assert "goes on" in capsys.readouterr().err


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
