"""The scripts of benchmarks/real_scale: their plans at full size, and all they do at the tiny one."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from processes import run
from quadratic_experiment import make_experiment

from celo2.evaluate.analysis.standings import arrange
from celo2.evaluate.suite.local import Failure
from celo2.evaluate.suite.results import RunResult
from celo2.evaluate.suite.store import RunStore, load_results
from celo2.tasks.registry import make_task
from helpers.run_results import make_random_run

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "real_scale"
SCRIPTS = {  # parameters, runs of the grids of celo2 and adamw, steps, batch, rows at once
    "lm_30m": ("49,214,208", (21, 14), "18,258", "64", "16"),
    "gpt2_124m": ("162,129,408", (21, 14), "4,712", "512", "16"),
    "vit_s16": ("22,122,472", (21, 14), "50,000", "1,024", "128"),
}
TEXTS = {"lm_30m": "3.812", "gpt2_124m": "3.35588 or 3.36785", "vit_s16": "about 66 %"}

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def load():
    """Imports a module of the folder, as a script there does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield importlib.import_module


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CELO2_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


def call(load: Any, script: str, *arguments: str) -> int:
    experiment = make_experiment() if script == "a quadratic" else load(script).EXPERIMENT
    return load("experiment").main(experiment, arguments)


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_plans_the_published_setting_without_data(script, load, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert call(load, script, "--dry-run", "--out", str(out), "--optimizers", "celo2,adamw") == 0
    assert not out.exists()
    text = capsys.readouterr().out
    parameters, runs, steps, batch, rows = SCRIPTS[script]
    assert f"{parameters} parameters" in text
    assert f"{batch} examples, {rows} at once" in text
    assert "MISSING" in text
    assert load(script).EXPERIMENT.need.folder in text
    for name, tuning in zip(("celo2", "adamw"), runs, strict=True):
        assert re.search(rf"^  {name} +{tuning} +3 ", text, re.MULTILINE)
    assert f"of {steps} steps each" in text
    assert "s, an estimate" in text


@pytest.mark.usefixtures("no_data")
def test_dry_run_takes_a_step_time_and_settings_that_are_given(load, tmp_path, capsys) -> None:
    arguments = ["--dry-run", "--optimizers", "adamw", "--out", str(tmp_path), "--step-seconds", "3.6"]
    assert call(load, "lm_30m", *arguments, "--set", "adamw=3e-3", "--seeds", "2") == 0
    text = capsys.readouterr().out
    assert "3.6 s, as given with --step-seconds" in text
    assert re.search(r"^  adamw +0 +2 +36\.5$", text, re.MULTILINE)  # 2 × 18,258 steps of 3.6 s


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("rows", ["4", "32", "64"])
def test_dry_run_takes_other_rows_than_the_tasks(rows, load, tmp_path, capsys) -> None:
    arguments = ["--optimizers", "adamw", "--out", str(tmp_path), "--step-seconds", "1", "--rows", rows]
    assert call(load, "lm_30m", "--dry-run", *arguments) == 0
    text = capsys.readouterr().out
    assert f"64 examples, {rows} at once" in text
    assert f"activations of {rows} examples" in text


@pytest.mark.parametrize("count", ["0", "-2", "two"])
def test_what_is_no_count_is_refused(count, load, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(load, "lm_30m", "--rows", count)
    assert f"expected a whole number, at least 1, got '{count}'" in capsys.readouterr().err


def test_all_experiments_have_the_shared_grids_and_differences(load) -> None:
    shared = load("experiment")
    for script in SCRIPTS:
        declared = load(script).EXPERIMENT
        assert declared.grids.items() >= load("grids").SHARED_GRIDS.items()
        assert declared.differences[-2:] == shared.SHARED_DIFFERENCES


@pytest.mark.usefixtures("no_data")
def test_full_size_without_data_says_what_to_put_where(load, tmp_path, capsys) -> None:
    assert call(load, "gpt2_124m", "--out", str(tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()
    message = capsys.readouterr().err
    assert "DIR/fineweb10B-gpt2 of --data DIR holds" in message
    assert "2,490,640,640 tokens" in message


def write_shard(folder: Path, tokens: int) -> None:
    folder.mkdir()
    header = np.zeros(256, "<i4")
    header[:3] = 20_240_520, 1, tokens
    body = np.arange(tokens) % 50_257
    (folder / "x_train_000001.bin").write_bytes(header.tobytes() + body.astype("<u2").tobytes())


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(("tokens", "complete"), [(1_500, True), (1_499, False)], ids=["enough", "too-few"])
def test_shards_are_counted(tokens, complete, load, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CELO2_DATA", str(tmp_path))
    shards = load("token_shards")
    monkeypatch.setattr(shards, "VALID_TOKENS", 500)
    write_shard(tmp_path / "tokens", tokens)
    need = shards.need_tokens("tokens", 1_000)
    if complete:
        assert need.check() == tmp_path / "tokens"
    else:
        with pytest.raises(ValueError, match=r"has 1,499 tokens in \*_train_\*.bin; a run reads 1,500"):
            need.check()


@pytest.mark.parametrize(
    ("timing", "seconds"), [("share of 4 runs side by side on 4 device(s)", 2.0), ("alone", 0.5)], ids=str
)
def test_time_of_a_step_is_that_of_one_device(timing, seconds, load) -> None:
    run = dataclasses.replace(make_random_run(), timing=timing, seconds_per_step=0.5)
    assert load("plan").seconds_of_step(run) == seconds


def test_estimates_agree_with_the_network(load) -> None:
    plan, task = load("plan"), make_task("gpt2-124m@small")
    params = jax.eval_shape(task.init, jax.random.key(0))
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params)) - 256 * 64  # without the input's table
    tokens, depth, width, context = 16 * 64, 3, 64, 64
    expected = 6 * matrices * tokens + 12 * depth * width * context * tokens
    counted = plan.count_operations(task, params, 4)
    # norms, softmax and rotations are a larger part of small networks than of large ones
    assert expected < counted < 1.35 * expected
    four, eight = (plan.count_activations(task, params, rows) for rows in (4, 8))
    assert eight == pytest.approx(2 * four, rel=0.05)


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("script", SCRIPTS)
def test_tiny_size_runs_to_a_table_with_the_texts_figures(script, load, tmp_path, capsys) -> None:
    name = "celo2" if script == "lm_30m" else "adamw"
    arguments = ["--size", "tiny", "--out", str(tmp_path), "--optimizers", name]
    assert call(load, script, *arguments) == 0
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert TEXTS[script] in table
    assert "ours are not comparable with them" in table
    assert "(full size) |" in table
    tuned, final = (load_results(tmp_path / stage).results for stage in ("tuning", "final"))
    [row] = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    best = min(tuned, key=lambda run: run.final_valid_loss)
    assert f"| {best.spec.learning_rate:g}, wd 0" in row
    assert {run.spec.learning_rate for run in final} == {best.spec.learning_rate}
    assert [run.spec.seed for run in final] == [1, 2]  # the tuning's is 0
    assert f"{np.mean([run.final_valid_loss for run in final]):.4f} ±" in row
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/runs/*/*/*/status.json")}
    assert call(load, script, *arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/runs/*/*/*/status.json")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "30"], r"has runs with .*'steps': 20.*'steps': 30.*use another --out"),
        (["--bfloat16"], r"has runs with .*'bfloat16': False.*'bfloat16': True"),
        (["--optimizers", "sgd"], r"no grid for 'sgd': lm-30m tunes celo2, .*celo2:PATH"),
        (["--optimizers", "adamw", "--set", "muon=1e-3"], r"--set names 'muon', which is not among adamw"),
    ],
    ids=["other-steps", "other-precision", "no-grid", "set-of-another"],
)
def test_what_does_not_fit_the_folder_or_the_script_is_refused(
    arguments, message, load, tmp_path, capsys
) -> None:
    settings = '{"task": "lm-30m@tiny", "steps": 20, "bfloat16": false}'
    (tmp_path / "settings.json").write_text(settings)
    assert call(load, "lm_30m", "--size", "tiny", "--out", str(tmp_path), *arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert jax.config.values["jax_default_matmul_precision"] is None


def test_help_teaches(load, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        call(load, "vit_s16", "--help")
    text = capsys.readouterr().out
    assert "python benchmarks/real_scale/vit_s16.py --dry-run" in text
    assert "train_image.npy" in text


def test_groups_are_split_into_runs_for_each_device(load) -> None:
    experiment = load("experiment")
    suite = experiment.Suite(
        name="one", tasks=("quadratic",), optimizers=("adamw",), num_learning_rates=5, seeds=1
    )
    [group] = suite.groups("quadratic")
    parts = experiment.split_group(group, 2)
    assert [len(part.specs()) for part in parts] == [2, 2, 1]
    assert [spec for part in parts for spec in part.specs()] == group.specs()
    several = group._replace(seeds=(1, 2, 3), learning_rates=group.learning_rates[:2])
    parts = experiment.split_group(several, 2)
    assert [spec for part in parts for spec in part.specs()] == several.specs()
    assert max(len(part.specs()) for part in parts) == 2


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, environment) -> None:
    """Killed between its first two checkpoints, so that steps are lost and taken again."""
    environment = environment | {
        "PYTHONPATH": os.pathsep.join([str(FOLDER), environment.get("PYTHONPATH", "")])
    }
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, quadratic_script(), str(killed)]
    run(command, {**environment, "QUADRATIC_KILL": "2"}, status=-signal.SIGKILL)
    assert len(list(killed.glob("final/checkpoints/*/*.npz"))) == 1
    assert RunStore(killed / "final").load().results == []
    run([*command, str(whole)], environment)
    [found], [expected] = (load_results(out / "final").results for out in (killed, whole))
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert not list(killed.glob("final/checkpoints/*"))


def quadratic_script() -> str:
    return str(Path(__file__).with_name("quadratic_experiment.py"))


def test_the_table_has_the_runs_of_the_setting_that_it_names(load, tmp_path, capsys) -> None:
    """Of several that the folder has, whichever is better."""
    arguments = ["--size", "tiny", "--optimizers", "adamw", "--seeds", "1"]
    shown = []
    for setting in ("0.01", "1e-5", "0.01,0.1"):
        assert call(load, "a quadratic", "--out", str(tmp_path), *arguments, "--set", f"adamw={setting}") == 0
        [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| adamw |")]
        shown.append([cell.strip() for cell in row.split("|")[2:7]])
    losses = {run.spec: f"{run.final_valid_loss:.4f}" for run in load_results(tmp_path / "final").results}
    by_setting = {(spec.learning_rate, spec.weight_decay): loss for spec, loss in losses.items()}
    assert len(set(losses.values())) == 3
    assert [(row[0], row[2], row[4]) for row in shown] == [
        ("0.01, wd 0", by_setting[0.01, 0.0], "1"),
        ("1e-05, wd 0", by_setting[1e-5, 0.0], "1, 1 diverged"),  # it ends where it began
        ("0.01, wd 0.1", by_setting[0.01, 0.1], "1"),
    ]


def make_setting(rate: float, loss: float, **values: Any) -> RunResult:
    """A run of AdamW with this rate and final loss."""
    one = make_random_run(learning_rate=rate, seed=1)
    return dataclasses.replace(one, valid_loss=np.array([9.0, loss], np.float32), **values)


def test_figures_are_those_of_the_setting_and_of_no_better_one(load) -> None:
    ours, grid = load("table").Ours.of, load("grids").Grid((1e-3, 1e-2), (0.0,), "ours")
    tuning = arrange([make_setting(rate, loss) for rate, loss in ((1e-3, 3.0), (1e-2, 2.0))]).tasks[0]
    final = arrange([make_setting(1e-3, 4.0, seconds_per_step=2.0), make_setting(1e-2, 1.0)]).tasks[0]
    found = ours("adamw", tuning, final, (1e-3, 0.0), grid)
    assert (found.tuned.mean, found.loss.mean, found.seeds, found.edge) == (3.0, 4.0, 1, "")
    assert found.step_seconds == 2.0
    best = ours("adamw", tuning, final, (1e-2, 0.0), grid)
    assert (best.tuned.mean, best.loss.mean, best.edge) == (2.0, 1.0, "highest")
    absent = ours("adamw", tuning, final, (5e-3, 0.0), grid)
    assert (absent.tuned, absent.loss, absent.accuracy, absent.seeds) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("setting", "edge"),
    [((1e-3, 0.0), "lowest"), ((1e-2, 1.0), "highest"), ((3e-3, 1.0), "decay"), ((3e-3, 0.0), "")],
    ids=["lowest", "highest", "decay", "none"],
)
def test_the_edge_is_that_of_the_declared_grid(setting, edge, load) -> None:
    """Whatever of it is finished: here a single run."""
    grid = load("grids").Grid((1e-3, 3e-3, 1e-2), (0.0, 1.0), "ours")
    rate, decay = setting
    run = make_setting(rate, 2.0)
    run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, weight_decay=decay))
    found = load("table").Ours.of("adamw", arrange([run]).tasks[0], None, setting, grid)
    assert found.edge == edge
    assert load("grids").Grid((1e-3,), (0.0,), "ours").edge(1e-3, 0.0) == ""


def stop_tuning_at(rate: float, monkeypatch: pytest.MonkeyPatch, load: Any, *, killed: bool) -> None:
    """Has a run of a tuning end the process, or fail; the rates before it are trained."""
    experiment = load("experiment")
    train = experiment.train_groups

    def stopped(groups: Any, machine: Any, on_progress: Any) -> Any:
        [group] = groups
        if rate not in group.learning_rates or group.seeds != (experiment.TUNING_SEED,):
            yield from train(groups, machine, on_progress)
        elif killed:
            raise KeyboardInterrupt
        else:
            yield Failure(group, "no memory")

    monkeypatch.setattr(experiment, "train_groups", stopped)


QUADRATIC = ("--size", "tiny", "--devices", "1", "--optimizers", "adamw", "--seeds", "1")


def test_the_final_stage_refuses_an_unfinished_tuning(load, tmp_path, capsys) -> None:
    arguments = [*QUADRATIC, "--out", str(tmp_path / "of two")]
    with pytest.MonkeyPatch.context() as patch:
        stop_tuning_at(1e-2, patch, load, killed=True)
        with pytest.raises(KeyboardInterrupt):
            call(load, "a quadratic", *arguments, "--stage=tune")
    capsys.readouterr()
    assert call(load, "a quadratic", *arguments, "--stage", "final") == 2
    message = capsys.readouterr().err
    assert "adamw: 1 of 2 missing: 0.01\n" in message
    assert not (tmp_path / "of two" / "final").exists()
    assert not (tmp_path / "of two" / "table.md").exists()
    assert call(load, "a quadratic", *arguments, "--stage", "final", "--set", "adamw=0.001") == 0
    assert "| 0.001, wd 0 (edge: lowest) |" in capsys.readouterr().out
    [command] = [shlex.split(line) for line in message.splitlines() if line.startswith("  python ")]
    assert [word for word in command if word.startswith("--stage")] == ["--stage"]
    assert call(load, "a quadratic", *command[2:]) == 0
    assert call(load, "a quadratic", *arguments, "--stage", "final") == 0
    assert "settings tuned" not in capsys.readouterr().out


def test_a_setting_that_failed_in_tuning_is_in_the_table(load, tmp_path, capsys, monkeypatch) -> None:
    stop_tuning_at(1e-2, monkeypatch, load, killed=False)
    assert call(load, "a quadratic", *QUADRATIC, "--out", str(tmp_path)) == 1
    assert "failed: adamw: no memory" in capsys.readouterr().err
    table = (tmp_path / "table.md").read_text()
    assert "| adamw | 0.001, wd 0 (edge: lowest; 1 of 2 settings tuned) |" in table


def test_the_best_is_of_the_declared_grid(load, tmp_path, capsys) -> None:
    """Not of a grid that the script had before, whose runs the folder has."""
    arguments = [*QUADRATIC, "--out", str(tmp_path), "--stage", "tune"]
    assert call(load, "a quadratic", *arguments) == 0
    before = load_results(tmp_path / "tuning").results
    worse = max(before, key=lambda run: run.final_valid_loss).spec.learning_rate
    experiment = make_experiment()
    grids = {"adamw": experiment.grids["adamw"]._replace(rates=(worse / 2, worse))}
    capsys.readouterr()
    assert load("experiment").main(dataclasses.replace(experiment, grids=grids), arguments) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| adamw |")]
    assert re.match(rf"\| adamw \| ({worse:g}|{worse / 2:g}), wd 0 \(edge", row)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_texts_of_grids_agree_with_their_numbers(script, load) -> None:
    for name, grid in load(script).EXPERIMENT.grids.items():
        low, high = grid.rates[0], grid.rates[-1]
        assert grid.describe().startswith(
            f"{len(grid.rates)} rates from {low:g} to {high:g}; weight decays 0, "
        )
        for rate in map(float, re.findall(r"\b\d(?:\.\d+)?e-\d\b", grid.source)):
            assert low < rate < high, name
            if "a decade below and above" in grid.source:
                assert (10 * low, high / 10) == pytest.approx((rate, rate))


def test_a_part_of_a_grid_is_called_one(load) -> None:
    grid = load("grids").SHARED_GRIDS["celo2"]
    assert grid.describe() == (
        "7 rates from 1e-05 to 0.001; weight decays 0, 0.1, 10; that of arXiv 2602.19142"
    )
    assert grid.shrunk("small").describe() == (
        "3 rates from 1e-05 to 0.001; weight decay 0; a part of the full grid, that of arXiv 2602.19142"
    )
    assert grid.shrunk("full") == grid
