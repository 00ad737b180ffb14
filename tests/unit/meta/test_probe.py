"""Probes: which rates are tried, what is measured, how candidates are compared, and what is compiled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from celo2 import load_checkpoint
from celo2.jax.transform import celo2_base
from celo2.meta.probe import Probe, ProbeConfig, compare, compute_score, describe_task
from celo2.meta.probe import measure as module
from celo2.meta.probe.figure import draw_comparisons
from celo2.meta.probe.measure import LADDER, log_ratios, next_rungs
from celo2.meta.probe.paired import detectable
from celo2.tasks.registry import make_task
from celo2.training.runner import run_grid
from helpers.probe_records import TINY_SET, make_record
from helpers.run_results import make_fake_grid


@pytest.fixture
def tiny_set(tmp_path) -> str:
    path = tmp_path / "bowl.toml"
    path.write_text(TINY_SET)
    return str(path)


def _search(loss_of) -> dict[int, tuple[float, ...]]:
    """All rungs that the search tries on losses that are a function of the rung."""
    known: dict[int, tuple[float, ...]] = {}
    while wanted := next_rungs(known):
        assert not set(wanted) & set(known), "a rung was tried twice"
        known |= {rung: loss_of(rung) for rung in wanted}
    return known


@pytest.mark.parametrize("best", [-19, -11, -6, -1, 0, 3, 7, 14])
def test_search_brackets_the_best_rate(best: int) -> None:
    known = _search(lambda rung: (abs(rung - best),))
    assert min(known, key=lambda rung: known[rung]) == best
    assert {best - 1, best + 1} <= set(known)
    assert len(known) <= 15


def test_search_brackets_the_best_of_both_measures() -> None:
    known = _search(lambda rung: (abs(rung - 3), abs(rung + 4)))
    assert {2, 3, 4, -5, -4, -3} <= set(known)


def test_search_ends_at_the_last_rung_and_goes_down_where_all_diverge() -> None:
    assert max(_search(lambda rung: (-rung,))) == module.LAST_RUNG
    assert min(_search(lambda _: (math.inf,))) < -module.LAST_RUNG + 4
    assert 0 < min(_search(lambda rung: (math.inf if rung > -9 else rung + 30,)).values())[0] < 12


class Runner:
    """In place of `GridRunner`: losses by rate, and what is compiled is counted."""

    made: list[tuple] = []  # noqa: RUF012

    def __init__(self, task, _, rates, *, seeds, steps, **__) -> None:
        self.made.append((task.task.name, len(rates), tuple(seeds), steps))
        self.initial_loss = 2.0

    def train(self, *, inputs, learning_rates):
        # the best rate is two rungs above the first, 0.05; the second seed diverges above 0.3
        losses = [
            [float(inputs[0]["w"]) * (1 + abs(math.log(rate / 0.1))) + seed for seed in (0.0, 0.1)]
            for rate in learning_rates
        ]
        losses = [[a, math.nan if r > 0.3 else b] for (a, b), r in zip(losses, learning_rates, strict=True)]
        return make_fake_grid(losses, learning_rates=learning_rates)


def test_record_is_of_the_best_rate_without_a_diverged_run(tiny_set: str, monkeypatch) -> None:
    monkeypatch.setattr(module, "GridRunner", Runner)
    monkeypatch.setattr(Runner, "made", [])
    probe = Probe(ProbeConfig(task_set=tiny_set), lambda *_: None)  # type: ignore[arg-type,return-value]
    record, again = (probe.measure({"w": np.full((), 0.5, np.float32)})["bowl"] for _ in range(2))
    assert Runner.made == [("quadratic", module.RATES_AT_ONCE, (7, 8), 12)]  # compiled once
    assert {**record, "seconds": 0} == {**again, "seconds": 0}
    assert record["rate"] == pytest.approx(0.1)
    assert record["loss"] == pytest.approx(0.55)
    assert record["spread"] == pytest.approx(0.1 / math.sqrt(2))
    assert not record["at_edge"]
    assert record["rates"] == sorted(record["rates"])
    ratios = np.diff(np.log(record["rates"])) / math.log(LADDER)
    np.testing.assert_allclose(ratios, ratios.round(), atol=1e-9)
    highest = record["train_losses"][-1]
    assert highest[1] is None
    assert record["losses"][-1] is None


def test_task_that_diverged_everywhere_counts_as_untrained() -> None:
    lost = make_record(None, untrained=2.0)
    assert describe_task(lost) == "diverged at every rate"
    assert compute_score({"a": lost}, {"a": make_record(1.0)}) is None
    assert compute_score({"a": make_record(1.0)}, {"a": lost}) == pytest.approx(math.log(0.5))


def test_score_is_the_log_of_the_geometric_mean_of_the_ratios_of_equal_seeds() -> None:
    start = {"a": make_record([1.0, 4.0]), "b": make_record([4.0, 4.0])}
    assert compute_score(start, start) == 0.0
    now = {"a": make_record([0.5, 2.0]), "b": make_record([3.0, 3.0])}
    assert math.exp(compute_score(now, start) or 0.0) == pytest.approx(math.sqrt(0.5 * 0.75))


def test_loss_of_zero_has_a_ratio() -> None:
    assert np.isfinite(log_ratios(make_record(0.0), make_record(1.0))).all()


def test_pairing_takes_out_what_seeds_share() -> None:
    rng = np.random.default_rng(0)
    shared = np.exp(rng.normal(0, 0.3, 8))
    start = {"a": make_record(list(shared))}
    now = {"a": make_record(list(shared * np.exp(rng.normal(-0.02, 0.003, 8))))}
    row = compare(now, start).rows[0]
    assert row.high < 0
    assert row.error < 0.003


def test_intervals_are_students() -> None:
    values = np.array([-0.03, -0.01, -0.02, -0.05])
    start = {"a": make_record([1.0] * 4)}
    row = compare({"a": make_record(list(np.exp(values)))}, start).rows[0]
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (row.mean, row.low, row.high) == pytest.approx((values.mean(), low, high))


def test_interval_of_the_mean_counts_tasks() -> None:
    start = {name: make_record([1.0, 1.0]) for name in "abc"}
    now = {
        name: make_record([math.exp(mean)] * 2) for name, mean in zip("abc", (-0.3, 0.1, -0.1), strict=True)
    }
    found = compare(now, start)
    assert found.mean.error == pytest.approx(stats.sem([-0.3, 0.1, -0.1]))
    assert found.seeds_error == 0.0
    assert (found.wins, found.num_seeds) == (2, 2)


def test_detectable_difference_is_seen_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    true = detectable(1 / math.sqrt(8), 8)
    samples = rng.normal(true, 1.0, (4000, 8))
    means, errors = samples.mean(1), samples.std(1, ddof=1) / math.sqrt(8)
    seen = np.abs(means) > errors * stats.t.ppf(0.975, 7)
    assert 0.74 < seen.mean() < 0.86


def test_figure_has_every_task_and_candidate() -> None:
    start = {name: make_record([1.0, 1.0]) for name in "ab"}
    now = {name: make_record([0.9, 0.8]) for name in "ab"}
    rows = {"new": compare(now, start), "old": compare(start, start)}
    figure = draw_comparisons({"training": rows, "validation": rows}, "adam")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["a", "b", "mean"]
    legend = right.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["new", "old"]
    assert "training: log ratio to adam" in left.get_xlabel()
    bars: Any = left.containers[0]
    line = bars.lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), 100 * np.log([0.9 * 0.8] * 3) / 2)


def test_comparison_without_the_references_task_is_refused() -> None:
    with pytest.raises(ValueError, match="has not been trained on 'b'"):
        compare({"b": make_record([1.0, 1.0])}, {"a": make_record([1.0, 1.0])})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("gtp",)}, "did you mean 'gpt'"),
        ({"seeds": -1}, "seeds must not be negative"),
    ],
    ids=["task", "seeds"],
)
def test_unusable_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**options)


def test_probe_is_the_comparison_with_the_public_optimizer(tiny_set: str) -> None:
    """Weights as an argument of the program, the second time around, or as its constants."""
    recipes = Path(__file__).resolve().parents[3] / "recipes"
    weights = load_checkpoint(recipes / "tried" / "celo2-base-pes.safetensors")  # of the variant's own decays
    probe = Probe.of_variant(ProbeConfig(task_set=tiny_set), "celo2-base")
    other = probe.measure({name: -array for name, array in weights.arrays.items()})["bowl"]
    first, again = (probe.measure(weights.arrays)["bowl"] for _ in range(2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    grid = run_grid(
        make_task("quadratic"),
        lambda schedule: celo2_base(schedule, weights=weights),
        first["rates"],
        seeds=(7, 8),
        steps=12,
    )
    ends = grid.train_loss[..., -2:].mean(-1)
    finite = [rate for rate, loss in enumerate(first["losses"]) if loss is not None]
    np.testing.assert_allclose([first["losses"][i] for i in finite], ends.mean(-1)[finite], rtol=1e-4)
    assert other["loss"] != pytest.approx(first["loss"], rel=1e-3)
