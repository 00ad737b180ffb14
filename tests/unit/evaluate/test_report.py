"""What a comparison writes: an HTML page that needs nothing else, a figure, data that can be read again."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from celo2.evaluate.comparison.compare import CompareResult
from celo2.evaluate.comparison.figure import draw_figure
from celo2.evaluate.comparison.report import render_report
from celo2.evaluate.comparison.store import SCHEMA, as_json, save_result
from celo2.report.plots import figure_svg
from helpers.compare_examples import make_comparison, make_entry

VOID = {"meta", "br", "hr", "img", "link", "input"}
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def result() -> CompareResult:
    """One optimizer tuned well, one with a diverged run, one that diverged everywhere."""
    return make_comparison(
        make_entry("adamw", [[0.9, 0.9], [0.2, 0.4], [0.5, 0.5]]),
        make_entry("muon", [[0.4, 0.4], [0.3, 0.3], [np.nan, 0.5]]),
        make_entry("sgd", [[np.nan, np.inf], [9.0, 9.0]]),
    )


@pytest.fixture(scope="module")
def page(result) -> Page:
    return Page(render_report(result, figure_svg(draw_figure(result))))


def test_report_is_well_formed_and_has_one_figure(page):
    assert page.open == []
    assert page.tags.count("svg") == 1


def test_report_needs_nothing_from_outside(page):
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert all(value.startswith("#") for value in references)
    outside = [value for name, value in page.attributes if "//" in value and not name.startswith("xmlns")]
    assert outside == []
    assert "@import" not in page.text
    assert "url(" not in page.text


@pytest.mark.parametrize(
    "text",
    [
        "a-data-set-sample",
        "made up & <escaped>",
        "adamw as described",
        "0.3000 ±0.1414",
        "sgd diverged at every learning rate",
        "muon, learning rate 0.1, seed 0: not finite from step 0 on",
        "sgd, learning rate 0.1, seed 1: ended above an untrained network",
        "adamw 0.3000, muon 0.3000",
        "abc123",
        "weight decay",
    ],
)
def test_report_says(page, text):
    assert text in page.text


def test_report_without_any_usable_run_says_so():
    result = make_comparison(make_entry("sgd", [[np.nan, 0.1]]))
    text = Page(render_report(result, figure_svg(draw_figure(result)))).text
    assert "No optimizer had a learning rate at which all its runs ended well." in text


def test_figure_follows_the_page_colours_and_is_reproducible(result):
    svg = figure_svg(draw_figure(result))
    assert "currentColor" in svg
    assert "#1c2733" not in svg
    assert svg == figure_svg(draw_figure(result))


def test_figure_has_a_line_for_every_optimizer(result):
    axes = draw_figure(result).axes
    labels = [line.get_label() for line in axes[0].get_lines()]
    assert {"adamw", "muon", "sgd (diverged)"} <= set(labels)
    assert [panel.get_xlabel().split()[0] for panel in axes] == ["steps", "seconds", "steps", "peak"]


def test_time_axis_is_steps_times_step_time():
    result = make_comparison(make_entry("adamw", [[0.2, 0.4]], seconds=0.5))
    against_steps, against_time = (panel.get_lines()[0].get_xdata() for panel in draw_figure(result).axes[:2])
    np.testing.assert_allclose(against_time, 0.5 * np.asarray(against_steps))


def test_saved_results_can_be_read_again(result, tmp_path):
    paths = save_result(result, tmp_path / "new" / "folder")
    assert set(paths) == {"report", "figure", "results", "curves"}
    found = json.loads(paths["results"].read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(as_json(result)))
    assert found["schema"] == SCHEMA
    assert paths["figure"].read_bytes().startswith(PNG_MAGIC)
    with np.load(paths["curves"], allow_pickle=False) as curves:
        np.testing.assert_allclose(curves["adamw/train_loss"][:, :, -1], [[0.9, 0.9], [0.2, 0.4], [0.5, 0.5]])
        assert curves["sgd/valid_loss"].shape == (2, 2, 2)
        assert curves["adamw/valid_accuracy"].shape == (3, 2, 2)


def test_results_have_null_for_what_is_not_finite(result):
    adamw, muon, sgd = as_json(result)["optimizers"]
    assert adamw["best_learning_rate"] == pytest.approx(1e-2)
    assert adamw["diverged_at"] == [[-1, -1]] * 3
    assert muon["final_train_loss"][2][0] is None
    assert muon["diverged_at"][2] == [0, -1]
    assert sgd["best_learning_rate"] is None
    json.dumps(as_json(result), allow_nan=False)


def test_results_name_what_an_interrupt_left_out(result):
    partial = dataclasses.replace(result, entries=result.entries[:1], unfinished=("muon", "sgd"))
    found = as_json(partial)
    assert found["unfinished"] == ["muon", "sgd"]
    assert [entry["name"] for entry in found["optimizers"]] == ["adamw"]


def test_page_says_whose_learning_rate_stays_constant():
    cosine = make_entry("adamw", [[0.2], [0.3]])
    constant = make_entry("schedule-free-adamw", [[0.2], [0.3]])
    assert "a constant rate for schedule-free-adamw)" in render_report(
        make_comparison(cosine, constant), "<svg/>"
    )
    assert "constant rate" not in render_report(make_comparison(cosine), "<svg/>")
