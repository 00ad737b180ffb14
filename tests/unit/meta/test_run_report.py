"""`celo2 report` on runs of meta-training: what it reads, shows and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from celo2.commands import report as command
from celo2.meta.report.figures import draw_runs
from celo2.meta.report.history import load_history, smooth
from celo2.meta.report.html import COLUMNS, make_rows, render_runs
from helpers.run_examples import PROBES, make_record, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "a & <b>", probes=PROBES)


@pytest.fixture
def drawn_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure is what takes time; most tests are not about it."""
    monkeypatch.setattr("celo2.meta.report.html.figure_svg", lambda _: "<svg></svg>")
    monkeypatch.setattr("celo2.meta.report.html.save_png", lambda _, path: path.touch())


def test_smoothing_is_the_mean_of_the_last_values_that_are_numbers() -> None:
    found = smooth(np.asarray([1.0, 3.0, np.nan, 5.0]), 2)
    np.testing.assert_array_equal(found, [1.0, 2.0, 3.0, 5.0])
    assert np.isnan(smooth(np.asarray([np.nan]), 3))[0]


def test_history_reads_columns_tasks_and_probes(run: Path) -> None:
    history = load_history(run, "a")
    assert history.steps.tolist() == list(range(1, 101))
    assert np.isnan(history.column("grad_norm")).sum() == 2
    np.testing.assert_allclose(history.task_losses["mlp/digits"][:2], [2.5, 2.0])
    assert history.probe_tasks == ("tiny-lm",)
    np.testing.assert_allclose(history.probe_ratios("tiny-lm"), [1.0, 0.8, np.nan])
    assert history.best_probe is not None
    assert history.best_probe["step"] == 50
    expected = float(np.mean([1.0 + 1.0 / step for step in range(41, 51)]))
    np.testing.assert_allclose(history.meta_loss_at(history.probe_steps, 10)[:2], [np.nan, expected])


def test_half_written_files_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", probes=PROBES)
    for name in ("metrics.jsonl", "probes.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[:-10])
    (folder / "config.json").unlink()
    history = load_history(folder, "run")
    assert (len(history.records), len(history.probes), history.recipe) == (99, 2, {})


@pytest.mark.usefixtures("drawn_blank")
@pytest.mark.parametrize("recipe", ["[1]", "null", "{", "[" * 100_000], ids=["list", "null", "torn", "deep"])
def test_what_is_damaged_is_named_and_the_rest_is_shown(tmp_path: Path, capsys, recipe: str) -> None:
    folder = write_run(tmp_path / "run", probes=PROBES)
    (folder / "config.json").write_text(recipe)
    for name in ("metrics.jsonl", "probes.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join([lines[0], "[]\n", *lines[1:], lines[-1]]))
    assert command.main([str(folder)]) == 0
    printed = capsys.readouterr()
    assert f"{folder / 'metrics.jsonl'}: 1 line(s) are no records of iterations" in printed.err
    assert f"{folder / 'metrics.jsonl'}: 1 line(s) repeat an iteration" in printed.err
    assert f"{folder / 'probes.jsonl'}: line 2 is not the record of a probe" in printed.err
    assert f"{folder / 'config.json'}: expected a JSON object" in printed.err
    assert "100" in printed.out


def test_rows_say_how_the_run_went(run: Path) -> None:
    row = dict(zip(COLUMNS, make_rows([load_history(run, "a")])[0], strict=True))
    assert row["iterations"] == "100"
    assert row["smoothed meta-loss at first"] == f"{1 + (1 + 1 / 2) / 2:.4f}"  # 2 % of 100 iterations are two
    assert row["smoothed meta-loss at last"] == f"{1 + (1 / 99 + 1 / 100) / 2:.4f}"
    assert row["gradient norm"] == f"{3 / 99:.3g}"  # of the last two, one was not finite
    assert (row["diverged, %"], row["resets"], row["skipped"]) == ("25.00", "200", "2")
    assert (row["probes"], row["best score"], row["best at"]) == ("3", "-0.2231", "50")


def test_page_has_the_numbers_and_escapes_the_names(run: Path) -> None:
    page = render_runs([load_history(run, run.name)], "<svg></svg>")
    for text in ("a &amp; &lt;b&gt;", "1.6000 at 0.003", "-0.2231", "diverged at every rate", "25.00"):
        assert text in page
    assert "losses -20.0 % from the start&#39;s" in page
    assert "<b>" not in page
    assert "http" not in page


def test_options_that_differ_come_first(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(seed), steps=3, recipe={"datasets": ["digits"], "seed": seed, "sigma": 0.01})
        for seed in (0, 1)
    ]
    page = render_runs([load_history(folder, folder.name) for folder in runs], "<svg></svg>")
    assert page.index("<th>seed</th>") < page.index("<th>datasets</th>")


def test_figure_shows_every_task_and_probe(run: Path) -> None:
    figure = draw_runs([load_history(run, "a")])
    losses, gradient, signal, _, probes, agreement, faults = figure.axes
    assert "Signal to noise" in signal.get_title()
    labels = [line.get_label() for line in losses.get_lines() if not str(line.get_label()).startswith("_")]
    assert labels == ["mlp/digits", "mlp/<b>bold</b>"]
    assert gradient.get_yscale() == "log"
    ring, score = probes.get_lines()[-1], probes.get_lines()[-2]
    np.testing.assert_allclose(np.asarray(score.get_ydata()), np.exp([0.0, -0.2231, np.nan]))
    np.testing.assert_allclose(np.asarray(ring.get_xdata()), [50])
    assert np.isfinite(np.asarray(agreement.get_lines()[0].get_xydata())).all(axis=1).sum() == 1
    assert [np.asarray(line.get_ydata())[-1] for line in faults.get_lines()] == [200, 100, 2]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_long_runs_are_drawn_with_few_points_and_their_last(tmp_path: Path) -> None:
    history = load_history(write_run(tmp_path / "run", steps=2000), "run")
    for line in draw_runs([history]).axes[0].get_lines():
        drawn = np.asarray(line.get_xdata())
        assert len(drawn) <= 600
        assert drawn[-1] == 2000


def test_report_of_two_runs_writes_both_files(tmp_path: Path, capsys) -> None:
    """One without probes, and with the older name of the tasks' losses."""
    first = write_run(tmp_path / "first", steps=60, probes=PROBES[:2])
    second = write_run(tmp_path / "second", steps=5)
    old = [make_record(step) for step in range(1, 6)]
    old = [{**record, "loss_per_set": {"digits": 1.5}} for record in old]
    for record in old:
        del record["loss_per_task"]
    (second / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in old))
    assert command.main([str(first), str(second), "--out", str(tmp_path / "both")]) == 0
    pixels = imread(tmp_path / "both" / "report.png")
    assert pixels.shape[0] > 500
    assert 0.005 < (pixels[..., :3].min(-1) < 0.9).mean() < 0.5  # ink on paper
    page = (tmp_path / "both" / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "digits, second" in page
    printed = capsys.readouterr().out
    assert "first" in printed
    assert "-0.2231" in printed
    assert str(tmp_path / "both" / "report.html") in printed


@pytest.mark.usefixtures("drawn_blank")
def test_report_goes_into_the_run_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / seed / "run", steps=3) for seed in "01"]
    assert command.main([str(folder) for folder in folders]) == 0
    assert (folders[0] / "report.html").exists()
    assert not (folders[1] / "report.html").exists()
    page = (folders[0] / "report.html").read_text()
    assert all(str(folder) in page for folder in folders)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "has neither suite.json nor metrics.jsonl"),
        (lambda folder: write_run(folder, steps=0), "has no iteration yet"),
    ],
    ids=["nothing", "another folder", "no iteration"],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, capsys, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "run")
    assert command.main([str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
