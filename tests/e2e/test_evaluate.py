"""`celo2 evaluate` from its command line to its report, and killed in the middle."""

from __future__ import annotations

import csv
import errno
import shutil
import sys
from pathlib import Path

import pytest
from processes import kill_when

from celo2.commands.evaluate import main
from celo2.commands.report import main as report
from celo2.evaluate.report import html
from celo2.evaluate.suite.store import RunStore, load_results, pack

pytestmark = pytest.mark.usefixtures("standard_promotion")

SUITE = """
tasks = ["quadratic", "digits-mlp"]
optimizers = ["sgdm", "adamw"]
num_learning_rates = 2
seeds = 2
steps = 20
"""
NUM_RUNS = 16


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "two.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def finished(suite: Path, standard_promotion: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a suite that nothing has disturbed."""
    out = tmp_path_factory.mktemp("finished")
    assert main(["--suite", str(suite), "--out", str(out)]) == 0
    return out


def _losses(folder: Path) -> list[tuple]:
    return [
        (run.spec, run.train_loss.tolist(), run.valid_loss.tolist(), run.diverged_at)
        for run in load_results(folder).results
    ]


def test_a_killed_suite_resumes_with_the_same_losses(
    suite: Path, finished: Path, tmp_path: Path, environment
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "celo2", "evaluate", "--suite", str(suite), "--out", str(out)]
    first_group = "runs/*/*/lr-*"  # in its place
    kill_when(lambda: list(out.glob(first_group)), command, environment)
    before = RunStore(out).load()
    assert 0 < len(before.results) < NUM_RUNS
    assert before.damaged == {}
    assert main(["--suite", str(suite), "--out", str(out)]) == 0
    assert _losses(out) == _losses(finished)


def test_a_second_evaluation_is_refused_and_nothing_is_lost(
    suite: Path, tmp_path: Path, environment, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "shared"
    words = ["--suite", str(suite), "--out", str(out)]
    command = [sys.executable, "-m", "celo2", "evaluate", *words]
    refused: list[str] = []

    def second_is_refused() -> bool:
        """Once the first holds the folder; the first is killed then, and must have lost nothing either."""
        if not list(out.glob("runs/*/*/lr-*")):
            return False
        assert main(words) == 2
        refused.append(capsys.readouterr().err)
        return True

    kill_when(second_is_refused, command, environment)
    assert f"{out} is in use by celo2 evaluate, process " in refused[0]
    before = _losses(out)
    assert 0 < len(before) < NUM_RUNS
    assert main(words) == 0  # the lock of the dead is taken over
    after = _losses(out)
    assert len(after) == NUM_RUNS
    assert [run for run in after if run in before] == before


def test_the_report_has_every_run(finished: Path) -> None:
    assert {"report.html", "runs.csv", "summary.csv", "tasks.csv", "curves.png", "scores.png"} <= {
        path.name for path in finished.iterdir()
    }
    with (finished / "runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == NUM_RUNS


def test_a_finished_suite_trains_nothing(suite: Path, finished: Path, capsys: pytest.CaptureFixture) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.glob("runs/*/*/*/*")}
    assert main(["--suite", str(suite), "--out", str(finished)]) == 0
    assert "compiling" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.glob("runs/*/*/*/*")} == times


def test_a_full_disk_at_the_report_is_one_line(
    suite: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(html, "write_atomic", full)
    assert main(["--suite", str(suite), "--out", str(finished)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no report: ")
    assert f"No space left on device: '{finished / 'tasks.csv'}'" in line
    assert f"celo2 report {finished}" in line


def test_one_odd_record_costs_only_itself(
    suite: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "odd"
    shutil.copytree(finished, out)
    status = next(out.glob("runs/quadratic/adamw/*/status.json"))
    status.write_text("null")
    assert report([str(out)]) == 0
    printed = capsys.readouterr()
    assert f"left out: {status.parent}: expected a JSON object, found null." in printed.err
    assert main(["--suite", str(suite), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "left out" not in printed.err
    assert len(_losses(out)) == NUM_RUNS


def test_packed_runs_give_the_same_tables(finished: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("folder", "packed"):
        page = tmp_path / f"{name}.md"
        page.write_text("before\n<!-- results -->\nold\n<!-- end -->\nafter\n")
        pages.append(page)
    pack(load_results(finished).results, tmp_path / "runs.npz")
    for place, page in zip((finished, tmp_path / "runs.npz"), pages, strict=True):
        assert report([str(place), "--markdown", str(page), "--out", str(tmp_path / page.stem)]) == 0
    texts = [page.read_text() for page in pages]
    assert texts[0] == texts[1]
    assert texts[0].startswith("before\n")
    assert texts[0].endswith("after\n")
    assert "old" not in texts[0]
    assert "| adamw |" in texts[0]


def test_tables_replace_the_part_of_their_own_name(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- results other -->\nkept\n<!-- end -->\n<!-- results runs -->\nold\n<!-- end -->\n")
    pack(load_results(finished).results, tmp_path / "runs.npz")
    words = [str(tmp_path / "runs.npz"), "--markdown", str(page), "--out", str(tmp_path / "report")]
    assert report(words) == 0
    text = page.read_text()
    assert text.startswith("<!-- results other -->\nkept\n<!-- end -->\n<!-- results runs -->\nScore")
    assert "old" not in text
    page.write_text("<!-- results other -->\nkept\n<!-- end -->\n")
    assert report(words) == 2  # no mark of this name, and none without one
    assert page.read_text() == "<!-- results other -->\nkept\n<!-- end -->\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "tinny"], "no suite 'tinny'; did you mean 'tiny'"),
        (["--optimizers", "muom"], "did you mean 'muon'"),
        (["--tasks", "quadratics"], "did you mean 'quadratic'"),
    ],
    ids=["suite", "optimizer", "task"],
)
def test_wrong_usage_is_explained(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
