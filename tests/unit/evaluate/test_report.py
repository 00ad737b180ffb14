"""What a suite's report writes: a page that needs nothing else, CSV, pictures, Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from celo2.evaluate.analysis.standings import arrange
from celo2.evaluate.analysis.summary import rank_optimizers, rank_tasks
from celo2.evaluate.report.curves import MAX_POINTS, figure_data, line_style, train_band
from celo2.evaluate.report.figures import draw_curves
from celo2.evaluate.report.html import as_markdown, render_report, write_report
from celo2.evaluate.report.tables import brief_task_table, split_task_table
from celo2.evaluate.suite.results import RankBy, RunResult
from celo2.report.plots import COLORS
from celo2.report.table import as_rich_table
from helpers.suite_results import make_run, make_suite


class Page(HTMLParser):
    """Checks that elements are closed in order; collects text outside scripts, attributes and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    return write_report(make_suite(), tmp_path_factory.mktemp("report") / "new" / "folder")


@pytest.fixture(scope="module")
def page(paths) -> Page:
    return Page(paths["report"].read_text(encoding="utf-8"))


def _render(runs: list[RunResult]) -> Page:
    standings = arrange(runs)
    return Page(render_report(standings, rank_optimizers(standings), rank_tasks(standings)))


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_page_is_well_formed_and_needs_nothing_from_outside(page):
    assert page.open == []
    assert not [value for name, value in page.attributes if name in ("src", "href", "data")]
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize(
    "text",
    [
        "3 tasks, 4 optimizers",
        "72 runs",
        "celo2 1.111, muon 1.053, adamw 1.000, celo2-base 0.909",
        "Not the published data: images-sample in place of Images.",
        "conv@tiny: muon, learning rate 0.1, seed 1: not finite from step 300 on",
        "conv@tiny: muon (0.4797) is better than celo2-base (0.5555, 16 % higher).",
        "made up & <escaped>",
        "900 (100)",
        "a <processor>",
        "validation loss (training loss or return where a task has no validation data)",
        "AdamW, betas 0.9 and 0.95",
        "2,000 parameters, 1,000 steps, batches of 4 (256 tokens); data: sentences; untrained: 10 nats",
    ],
)
def test_page_says(page, text):
    assert text in page.text


def test_page_carries_finite_numbers_only(page):
    data = json.loads(page.scripts[0], parse_constant=_refuse)
    assert [task["label"] for task in data["tasks"]] == ["catch@tiny", "conv@tiny", "lm@tiny"]
    conv = data["tasks"][1]["rates"]["muon"]
    assert (conv["x"], conv["lost"], conv["best"]) == ([0.001, 0.01], [0.1], 0.01)


def test_infinite_score_is_told_but_not_drawn():
    page = _render(
        [make_run(f, optimizer=n, task=t) for t in "ab" for n, f in (("adamw", 1.0), ("muon", 0.0))]
    )
    assert "Score, adamw = 1, highest first: muon inf, adamw 1.000." in page.text
    scores = json.loads(page.scripts[0], parse_constant=_refuse)["scores"]
    assert [score["score"] for score in scores] == [None, 1.0]


def test_every_environment_is_told_once_with_its_number_of_runs():
    runs = [make_run(1.0, seed=seed, environment={"commit": f"c{seed // 2}"}) for seed in range(3)]
    text = _render(runs).text
    assert "2 of 3 runs" in text
    assert "1 of 3 runs" in text


def test_runs_csv_has_a_line_for_each_run(paths):
    runs = _read(paths["runs"])
    assert len(runs) == 72
    assert len({(r["task"], r["optimizer"], r["learning_rate"], r["seed"]) for r in runs}) == 72
    assert sum(r["best_setting"] == "True" for r in runs) == 3 * 4 * 2
    assert [r["diverged_at"] for r in runs if r["diverged_at"] != "-1"] == ["300"]


def test_tasks_csv_has_numbers_in_full(paths):
    rows = _read(paths["tasks"])
    assert len(rows) == 12
    best = next(row for row in rows if (row["task"], row["optimizer"]) == ("conv@tiny", "celo2"))
    assert float(best["final_train_loss_mean"]) == pytest.approx(0.36 * 1.01, rel=1e-12)
    assert best["accuracy_mean"]
    texts = {"task", "optimizer", "unit", "edge", "rank_by", "bounded"}
    for row in rows:
        numbers = {name: value for name, value in row.items() if name not in texts and value}
        assert all(math.isfinite(float(value)) or value == "inf" for value in numbers.values())
    assert not rows[0]["accuracy_mean"]  # of catch@tiny, which has none


def test_summary_csv_has_the_intervals(paths):
    rows = _read(paths["summary"])
    assert [row["optimizer"] for row in rows] == ["celo2", "muon", "adamw", "celo2-base"]
    assert float(rows[0]["over_tasks_low"]) < float(rows[0]["score"]) < float(rows[0]["over_tasks_high"])


def test_pictures_are_png(paths):
    for kind in ("curves", "scores"):
        assert paths[kind].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_curves_picture_has_a_panel_for_each_task_and_a_line_for_each_optimizer():
    figure = draw_curves(arrange(make_suite()))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["catch@tiny", "conv@tiny", "lm@tiny"]
    assert [len(axes.get_lines()) for axes in panels] == [4, 4, 4]
    assert [axes.get_ylabel() for axes in panels] == ["training return", *2 * ["validation loss"]]


def test_no_two_optimizers_look_alike():
    assert len({line_style(index) for index in range(4 * len(COLORS))}) == 4 * len(COLORS)


def test_band_ends_where_a_seed_diverged_and_a_return_has_its_sign_back():
    standings = arrange([make_run(1.0, diverged_at=400), make_run(1.2, seed=1)])
    task = standings.tasks[0]
    band = train_band(task, task.cells["adamw"])
    assert band.x[-1] == 380  # the last point before step 400
    assert np.all((band.low <= band.mean) & (band.mean <= band.high))
    agent = next(task for task in arrange(make_suite()).tasks if task.returns)
    assert train_band(agent, agent.cells["celo2"]).mean[-1] == pytest.approx(44.0087, rel=1e-4)


def test_curves_are_thinned_so_that_the_page_stays_small():
    """25 tasks × 10 optimizers must fit in 5 MB beside the script of 5 MB: 20 kB each."""
    steps = np.arange(1, 5001)
    run = make_run(1.0, steps=5000, train_steps=steps, train_loss=2.3 - steps / np.pi / 5000)
    standings = arrange([run])
    data = figure_data(standings, rank_optimizers(standings))
    curve = data["tasks"][0]["curves"]["adamw"]
    assert len(curve["train"]["x"]) == MAX_POINTS
    assert curve["train"]["x"][-1] == 5000
    assert len(json.dumps(curve)) < 20_000


def test_report_without_any_usable_run_says_so():
    runs = [make_run(1.0, diverged_at=3), make_run(1.0, optimizer="celo2", diverged_at=1000)]
    text = _render(runs).text
    assert "No optimizer had a setting at which all its runs ended well." in text
    assert (
        "No scores: adamw has no usable run."
        in _render([*runs, make_run(1.0, task="b", optimizer="celo2")]).text
    )
    assert "ended above an untrained network's loss" in text


def test_markdown_has_the_tables_and_where_celo2_loses():
    text = as_markdown(make_suite())
    assert "| conv@tiny | **0.4545 ±0.0064** | 0.5555 ±0.0078 | 0.505 ±0.0071 | 0.4797 ±0.0067 |" in text
    assert re.search(r"^\| celo2 \| 3 \| 1\.111 \|", text, re.MULTILINE)
    assert "- lm@tiny: muon (5.997) is better than celo2-base (6.944, 16 % higher)." in text
    assert "steps: 1,000; seeds: 0, 1; weight decay: 0." in text


CONV = [run for run in make_suite() if run.spec.task == "conv@tiny"]


def test_report_of_one_task_begins_with_its_table_and_has_no_scores_over_tasks(tmp_path):
    paths = write_report(CONV, tmp_path)
    assert set(paths) == {"report", "tasks", "runs", "curves"}
    page = Page(paths["report"].read_text(encoding="utf-8"))
    assert page.open == []
    assert "celo2 ends lowest on conv@tiny: validation loss 0.4545, 5.3 % below muon (0.4797)" in page.text
    ids = [value for name, value in page.attributes if name == "id"]
    assert {"losses-0", "speed-0", "curves", "rates"} <= set(ids)
    assert not {"summary", "overview", "scores", "profiles"} & set(ids)


def test_picture_of_one_task_has_four_panels():
    standings = arrange([*CONV, *(make_run(1.0, optimizer="sgd", seed=s, diverged_at=300) for s in (0, 1))])
    figure = draw_curves(standings)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["validation loss", "training loss", "validation loss", "final validation loss"]
    seconds = figure.axes[2].get_lines()[0].get_xdata()
    assert np.max(np.asarray(seconds)) == pytest.approx(1000 * 0.002)  # celo2's steps take 2 ms
    assert "sgd (diverged)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_tables_of_one_task_have_the_losses_that_rank_first():
    kinds: dict[RankBy, str] = {"validation": "final valid loss", "training": "final train loss"}
    for rank_by, first in kinds.items():
        rows = rank_tasks(arrange(CONV, rank_by=rank_by))
        losses, speed = split_task_table(rows)
        assert losses.columns[:2] == ("optimizer", first)
        assert [row[1].best for row in losses.rows] == [True, False, False, False]
        assert set(losses.columns) & set(speed.columns) == {"optimizer"}


@pytest.mark.parametrize("width", [60, 200])
def test_terminal_shows_every_figure_whole(width):
    console = Console(width=width, file=(shown := io.StringIO()))
    console.print(as_rich_table(brief_task_table(rank_tasks(arrange(CONV))), "a title", width))
    words = shown.getvalue().split()
    for text in ("0.4545", "±0.0064", "adamw", "celo2-base", "(2×)", "1/6"):
        assert text in words


def test_markdown_says_where_a_grid_is_incomplete():
    assert "- conv@tiny: adamw has 1 of 2 runs." in as_markdown(
        [make_run(1.0), make_run(1.0, optimizer="celo2", seed=1), make_run(1.0, optimizer="celo2")]
    )
