"""Names with markup, mathematics, tags, or very long: in tables, figures, pages and folders."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from celo2.commands import _suite_report, report
from celo2.evaluate.analysis.standings import arrange
from celo2.evaluate.analysis.summary import rank_tasks
from celo2.evaluate.report.curves import figure_data
from celo2.evaluate.report.html import as_markdown, write_report
from celo2.evaluate.report.tables import brief_task_table
from celo2.evaluate.suite.store import RunStore, load_results
from celo2.report.kit import figure_label, shorten
from celo2.report.table import as_rich_table
from helpers.run_examples import PROBES, write_run
from helpers.run_results import make_random_run
from helpers.suite_results import make_run

NAMES = {
    "markup": "celo2:[red]a[/red].safetensors",
    "closing tag": "celo2:[/bold].safetensors",
    "mathematics": r"celo2:$\frac{a$.safetensors",
    "one dollar": "celo2:$a.safetensors",
    "tags": "celo2:<b>a</b>&amp;.safetensors",
    "script": "celo2:</script><script>alert(1)</script>.safetensors",
    "bars": "celo2:a|b.safetensors",
    "braces": "celo2:{a}%{y}%s.safetensors",
    "long": f"celo2:{'long/' * 60}a.safetensors",
    "other letters": f"celo2:{'ö' * 150}.safetensors",
}


@pytest.fixture(params=NAMES.values(), ids=list(NAMES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def _show(shown: object, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_short_name_stays_and_a_long_one_keeps_its_ends() -> None:
    assert shorten("celo2:a.safetensors") == "celo2:a.safetensors"
    long, other = (f"celo2:{'x' * 300}{letter}{'y' * 300}.safetensors" for letter in "ab")
    assert len(shorten(long)) == 64
    assert shorten(long).startswith("celo2:xxx")
    assert shorten(long).endswith("yyy.safetensors")
    assert shorten(long) != shorten(other)
    assert figure_label("_a") == " _a"


@pytest.fixture
def runs(name: str) -> list:
    return [
        make_run(final * (1 + 0.1 * seed), optimizer=optimizer, seed=seed)
        for optimizer, final in ((name, 0.4), ("adamw", 0.5))
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("width", [100, 200], ids=["columns", "rows"])
def test_a_comparison_shows_the_name_as_it_is(name: str, runs: list, width: int) -> None:
    table = as_rich_table(brief_task_table(rank_tasks(arrange(runs))), "a title", width)
    shown = _show(table, width)
    assert "".join(shorten(name).split()) in "".join(_unfold(shown).split())


def _unfold(table: str) -> str:
    """The first column, or the first column but one of the heads, of a table whose cells were folded."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    columns = [line[place] for place in range(3) for line in lines if len(line) > place]
    return "".join(columns) + "".join(table.split())


@pytest.mark.filterwarnings("default:Glyph")
@pytest.mark.parametrize("tasks", [1, 2], ids=["comparison", "suite"])
def test_a_report_with_the_name_is_drawn_and_written(
    name: str, runs: list, tmp_path: Path, tasks: int
) -> None:
    more = [make_run(0.5, optimizer=one, task=name) for one in (name, "adamw")] if tasks == 2 else []
    paths = write_report([*runs, *more], tmp_path, baseline="adamw")
    assert all(imread(paths[kind]).size for kind in ("curves", "scores") if kind in paths)
    page = paths["report"].read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<b>a</b>" not in page
    with paths["runs"].open(encoding="utf-8", newline="") as file:
        assert name in {row["optimizer"] for row in csv.DictReader(file)}
    standings = arrange(runs, "adamw")
    labels = [optimizer["name"] for optimizer in figure_data(standings, [])["optimizers"]]
    assert not any(re.search("<[a-z/]", label) for label in labels)


def test_a_suite_shows_the_name_as_it_is(name: str, runs: list, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("celo2.evaluate.report.html.write_report", lambda *_, **__: {})
    console = Console(file=io.StringIO(), width=400)
    other = [make_run(0.5, optimizer=one, task="lm@tiny") for one in (name, "adamw")]
    _suite_report.report_suite([*runs, *other], tmp_path, console)
    assert f" {shorten(name)} " in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_table_in_markdown_keeps_its_columns(runs: list) -> None:
    other = [make_run(0.5, optimizer=run.spec.optimizer, task="lm@tiny") for run in runs[::2]]
    lines = [line for line in as_markdown([*runs, *other]).splitlines() if line.startswith("|")]
    counts = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert set(counts) == {13, 4}  # of the two tables
    assert "<b>" not in "".join(lines)


def test_runs_with_the_name_have_folders(name: str, tmp_path: Path) -> None:
    store, run = RunStore(tmp_path), make_random_run(optimizer=name)
    store.add([run])
    assert [found.spec for found in load_results(tmp_path).results] == [run.spec]
    folder = store.path(run.spec).parent
    assert folder.parent == tmp_path / "runs" / "a-task"
    assert len(folder.name.encode()) <= 128


def test_long_names_with_one_beginning_have_folders_of_their_own(tmp_path: Path) -> None:
    one, other = (make_random_run(optimizer=f"celo2:{'x' * 300}{letter}").spec for letter in "ab")
    assert RunStore(tmp_path).path(one).parent != RunStore(tmp_path).path(other).parent


FOLDERS = {"markup": "[red]a[/red]", "mathematics": r"$\frac{a$", "hidden": "_a", "long": "x" * 200}


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_a_run_in_such_a_folder_is_shown_and_drawn(tmp_path: Path, capsys, folder: str) -> None:
    run = write_run(tmp_path / folder, probes=PROBES, steps=60)
    assert report.main([str(run)]) == 0
    printed = "".join(capsys.readouterr().out.split())
    assert shorten(folder) in printed
    assert imread(run / "report.png").size
