"""From runs to tables: which setting is the best, what is relative to what, what a reader is warned of."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from celo2.evaluate.analysis.caveats import caveats, defeats, describe_divergence, verdict
from celo2.evaluate.analysis.standings import arrange, default_baseline
from celo2.evaluate.analysis.summary import rank_optimizers, rank_tasks
from celo2.evaluate.suite.results import RunResult
from helpers.suite_results import AGENT, IMAGES, VALID, make_run, make_suite


def _cell(*runs, optimizer="adamw") -> Any:
    return arrange(runs).tasks[0].cells[optimizer]


def _row(rows, optimizer, task=None) -> Any:
    return next(row for row in rows if row.optimizer == optimizer and (task is None or row.task == task))


def test_best_setting_has_the_lowest_mean_final_loss():
    runs = [
        make_run(final, rate=rate, decay=decay, seed=seed)
        for rate, decay, finals in ((0.1, 0.0, (1.0, 1.2)), (0.1, 0.1, (0.5, 1.5)), (0.01, 0.1, (1.0, 1.1)))
        for seed, final in enumerate(finals)
    ]
    cell = _cell(*runs)
    assert cell.best == (0.1, 0.1, "cosine")
    assert_allclose(cell.losses, [0.5 * VALID, 1.5 * VALID])


def _overfit(rate: float, train: float, valid: float, **options):
    run = make_run(train, rate=rate, **options)
    return dataclasses.replace(run, valid_loss=np.full_like(run.valid_loss, valid))


@pytest.mark.parametrize(
    ("rank_by", "best", "name"), [("validation", 0.01, "adamw"), ("training", 0.1, "muon")]
)
def test_validation_losses_decide_unless_training_losses_are_asked_for(rank_by, best, name):
    """The higher rate fits the training data better, as does muon; the validation loss is then worse."""
    runs = [_overfit(0.01, 0.5, 0.6), _overfit(0.1, 0.1, 0.9)]
    runs += [_overfit(rate, 0.05, 0.8, optimizer="muon") for rate in (0.01, 0.1)]
    standings = arrange(runs, rank_by=rank_by)
    [task] = standings.tasks
    assert task.cells["adamw"].best == (best, 0.0, "cosine")
    assert task.winners() == [name]
    assert verdict(standings, rank_optimizers(standings)).startswith(
        f"{name} ends lowest on conv@tiny: {rank_by} loss"
    )
    assert task.scores("adamw").item() == 1.0


def test_a_task_without_validation_data_is_ranked_by_what_it_trains():
    [task] = arrange([make_run(-20.0, start=0.0, facts=AGENT)], rank_by="validation").tasks
    assert (task.rank_by, task.loss_name) == ("training", "training return")


def test_verdict_on_one_task_gives_the_distances():
    finals = {"celo2": 0.8, "adamw": 1.0, "muon": 0.82}
    runs = [
        make_run(f, optimizer=n, seed=s, rate=r) for n, f in finals.items() for s in (0, 1) for r in (0.1, 1)
    ]
    lost = [make_run(1.0, optimizer="sgd", diverged_at=5, seed=s, rate=r) for s in (0, 1) for r in (0.1, 1)]
    standings = arrange([*runs, *lost])
    assert verdict(standings, rank_optimizers(standings)) == (
        "celo2 ends lowest on conv@tiny: validation loss 1, 2.4 % below muon (1.025), 20 % below adamw "
        "(1.25), sgd diverged. Each optimizer has the best of 2 learning rates, mean of 2 seeds."
    )


def test_scores_over_fewer_tasks_come_after_those_over_all_and_are_told_apart():
    """On its one task muon is far ahead, which says nothing about the two of the others."""
    finals = {"celo2": 0.9, "adamw": 1.0}
    runs = [make_run(final, optimizer=name, task=task) for name, final in finals.items() for task in "ab"]
    standings = arrange([*runs, make_run(0.1, optimizer="muon", task="a")])
    rows = rank_optimizers(standings)
    assert [(row.optimizer, row.tasks) for row in rows] == [("celo2", 2), ("adamw", 2), ("muon", 1)]
    text = verdict(standings, rows)
    assert ": celo2 1.111, adamw 1.000. On 1 of these 2 tasks, so not comparable: muon " in text


def test_verdict_says_where_the_seeds_differ_more_than_the_optimizers():
    """Paired by seed, celo2 is 0.1 below adamw with each; muon is above it with one, below with another."""
    finals = {"celo2": (0.8, 1.2, 1.0), "adamw": (0.9, 1.3, 1.1), "muon": (1.1, 1.0, 1.0)}
    runs = [make_run(f, optimizer=n, seed=s) for n, of in finals.items() for s, f in enumerate(of)]
    standings = arrange(runs)
    text = verdict(standings, rank_optimizers(standings))
    assert "3.2 % below muon (1.292, within the seeds' spread), 9.1 % below adamw (1.375)." in text


def test_an_optimizer_that_sets_its_own_rate_is_told_and_not_counted_as_less_tuned():
    runs = [make_run(1.0, rate=rate) for rate in (0.1, 1.0)] + [
        make_run(1.0, optimizer="celo:file", rate=1.0)
    ]
    notes = caveats(arrange(runs))
    assert "celo:file sets its own step sizes: nothing of it was tuned." in notes
    assert not any("equally many" in note for note in notes)


def test_setting_with_a_diverged_seed_cannot_be_the_best():
    lost = make_run(0.1, rate=0.1, seed=0), make_run(0.1, rate=0.1, seed=1, diverged_at=1000)
    cell = _cell(*lost, make_run(1.0, rate=0.01, seed=0), make_run(1.0, rate=0.01, seed=1))
    assert cell.best.learning_rate == 0.01
    assert [run.spec.seed for run in cell.diverged] == [1]


def test_setting_with_fewer_seeds_cannot_be_the_best():
    cell = _cell(make_run(1.0, seed=0), make_run(1.0, seed=1), make_run(0.1, rate=0.1, seed=0))
    assert cell.best.learning_rate == 0.01


def test_optimizer_that_diverged_everywhere_scores_zero_and_is_last():
    runs = [make_run(1.0, seed=seed) for seed in (0, 1)]
    lost = [make_run(1.0, optimizer="sgd", seed=seed, diverged_at=at) for seed, at in ((0, 500), (1, 700))]
    standings = arrange([*runs, *lost])
    row = rank_optimizers(standings)[-1]
    assert (row.optimizer, row.score, row.speed_up, row.improvement, row.wins) == ("sgd", 0.0, 0.0, 0.0, 0)
    assert rank_tasks(standings)[-1].final_train_loss is None
    assert any("sgd diverged" in note for note in caveats(standings))


def test_figure_of_a_diverged_optimizer_shows_what_came_farthest():
    runs = [make_run(1.0, rate=rate, diverged_at=at) for rate, at in ((0.01, 300), (0.1, 600), (1.0, 20))]
    assert _cell(*runs).shown.learning_rate == 0.1


@pytest.mark.parametrize(("best", "edge"), [(0, "lowest"), (1, ""), (2, "highest")])
def test_edge_of_the_grid(best, edge):
    runs = [make_run(0.5 if i == best else 1.0, rate=rate) for i, rate in enumerate((0.001, 0.01, 0.1))]
    assert _cell(*runs).edge == edge


def test_one_rate_has_no_edge():
    assert _cell(make_run(1.0)).edge == ""


def test_scores_and_speed_ups_are_relative_to_the_baselines_mean():
    """The straight line from 2.3 to 0.46 comes below AdamW's mean, 1.0, at step 720 of 1000."""
    runs = [make_run(0.9), make_run(1.1, seed=1), make_run(0.46, optimizer="muon", seconds_per_step=0.002)]
    task: Any = arrange(runs).tasks[0]
    assert_allclose(task.scores("muon"), [1.0 / 0.46])
    assert_allclose(task.scores("adamw"), [1 / 0.9, 1 / 1.1])
    assert_allclose(task.speed_up("muon"), 1000 / 720)
    assert_allclose(task.speed_up("muon", in_seconds=True), 500 / 720)
    assert task.speed_up("adamw") == 1.0


def test_returns_are_scored_by_the_inverse_ratio():
    runs = [
        make_run(-final, optimizer=name, start=0.0, facts=AGENT)
        for name, final in (("adamw", 20.0), ("celo2", 30.0), ("muon", -1.0))
    ]
    task = arrange(runs).tasks[0]
    assert [float(task.scores(name)[0]) for name in ("celo2", "muon")] == [1.5, 0.0]
    assert defeats(arrange(runs)) == []


def test_another_baseline_can_be_named():
    runs = [make_run(1.0), make_run(0.5, optimizer="muon")]
    row = _row(rank_optimizers(arrange(runs, baseline="muon")), "adamw")
    assert row.score == 0.5


@pytest.mark.parametrize("case", ["missing", "diverged", "negative"])
def test_task_without_a_baseline_has_ranks_but_no_scores(case):
    runs = {
        "missing": [make_run(1.0, optimizer="muon")],
        "diverged": [make_run(1.0, diverged_at=9), make_run(1.0, optimizer="muon")],
        "negative": [make_run(1.0), make_run(-1.0, optimizer="muon")],
    }[case]
    standings = arrange(runs)
    row = _row(rank_optimizers(standings), "muon")
    assert (row.tasks, row.score, row.speed_up, row.rank, row.wins) == (0, None, None, 1.0, 1)
    assert any("no scores" in note.lower() for note in caveats(standings))


def test_summary_of_the_made_up_suite():
    """Every loss is a multiple of AdamW's, 0.9 for celo2: its scores are 1/0.9, but for the seed's 2 %."""
    rows: list[Any] = rank_optimizers(arrange(make_suite()))
    assert [row.optimizer for row in rows] == ["celo2", "muon", "adamw", "celo2-base"]
    best = rows[0]
    assert best.score == pytest.approx(1 / 0.9, rel=1e-3)
    assert best.over_seeds.low < best.score < best.over_seeds.high
    assert (best.tasks, best.improvement, best.rank, best.wins, best.runs) == (3, 1.0, 1.0, 3, 18)
    assert best.time_ratio == pytest.approx(2.0)
    assert rows[1].diverged == 1
    assert rows[-1].speed_up == 0.0  # never reached


def test_task_rows_have_what_was_measured():
    row = _row(rank_tasks(arrange(make_suite())), "muon", "conv@tiny")
    assert (row.learning_rate, row.weight_decay, row.edge, row.settings) == (0.01, 0.0, "", 3)
    assert row.final_train_loss.mean == pytest.approx(0.38 * 1.01)
    assert row.final_valid_loss.mean == pytest.approx(0.38 * 1.01 * VALID)
    assert row.best_valid_loss.mean == pytest.approx(0.38 * 1.01 * VALID)
    assert row.accuracy.mean == pytest.approx(0.8)
    assert (row.half_decade, row.bounded) == (math.inf, True)  # it diverged at the rate above the best
    assert (row.diverged, row.runs, row.state_bytes_per_parameter) == (1, 6, 8.0)
    assert [r.optimizer for r in rank_tasks(arrange(make_suite()))[:4]] == [
        "celo2",
        "muon",
        "adamw",
        "celo2-base",
    ]


def test_times_that_were_not_measured_alike_are_not_compared():
    runs = [make_run(1.0), make_run(0.5, optimizer="muon", timing="together")]
    row = _row(rank_tasks(arrange(runs)), "muon")
    assert (row.time_ratio, row.time_speed_up) == (None, None)
    assert row.speed_up > 1


def test_lengths_and_data_sets_make_different_tasks():
    other = dataclasses.replace(IMAGES, dataset="images")
    runs = [make_run(1.0), make_run(1.0, steps=500), make_run(1.0, steps=500, facts=other)]
    labels = {task.label for task in arrange(runs).tasks}
    assert labels == {
        "conv@tiny, 1000 steps, on images-sample",
        "conv@tiny, 500 steps, on images-sample",
        "conv@tiny, 500 steps, on images",
    }


@pytest.mark.parametrize(
    ("names", "baseline"),
    [(("muon", "celo2", "adamw"), "adamw"), (("sgd", "celo2", "muon"), "muon"), (("celo2",), "celo2")],
)
def test_default_baseline_is_adamw_or_another_hand_designed_one(names, baseline):
    assert default_baseline(names) == baseline


def test_no_runs_and_a_run_given_twice_are_refused():
    with pytest.raises(ValueError, match="no finished run"):
        arrange([])
    with pytest.raises(ValueError, match="appears twice"):
        arrange([make_run(1.0), make_run(1.0)])


def test_complete_suite_is_warned_of_its_data_and_sizes_only():
    notes = caveats(arrange(make_suite()))
    assert len(notes) == 2
    assert "images-sample" in notes[0]
    assert "size tiny" in notes[1]


def level_off(run: RunResult) -> RunResult:
    """The run with its final loss from the middle on."""
    losses = run.train_loss.copy()
    losses[len(losses) // 2 - 1 :] = losses[-1]
    return dataclasses.replace(run, train_loss=losses)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda runs: [r for r in runs if r.spec.seed == 0], "one seed"),
        (lambda runs: runs[1:], "celo2 has 5 of 6 runs"),
        (
            lambda runs: [r for r in runs if (r.spec.optimizer, r.spec.task) != ("muon", "lm@tiny")],
            "muon was not run",
        ),
        (
            lambda runs: [r for r in runs if r.spec.optimizer != "muon" or r.spec.learning_rate < 0.1],
            "equally many",
        ),
        (lambda runs: [r for r in runs if r.spec.learning_rate != 0.1], "best rate is the highest tried"),
        (lambda runs: [r for r in runs if r.spec.learning_rate == 0.1], "one setting for each optimizer"),
        (
            lambda runs: [level_off(r) if r.spec.optimizer == "adamw" else r for r in runs],
            "of 2.00× in steps",
        ),
        (lambda runs: [dataclasses.replace(r, timing="together") for r in runs], "side by side"),
        (
            lambda runs: [dataclasses.replace(runs[0], environment={"processor": "other"}), *runs[1:]],
            "2 kinds",
        ),
        (
            lambda runs: [*runs, make_run(0.1, decay=0.1), make_run(0.1, decay=0.1, seed=1)],
            "highest tried on conv",
        ),
    ],
    ids=[
        "seeds",
        "incomplete",
        "missing",
        "settings",
        "edge",
        "untuned",
        "parity",
        "timing",
        "machines",
        "decay",
    ],
)
def test_warnings(change, warning):
    assert any(warning in note for note in caveats(arrange(change(make_suite()))))


def test_defeats_name_the_best_other_optimizer_and_the_distance():
    assert defeats(arrange(make_suite()))[1] == (
        "conv@tiny: muon (0.4797) is better than celo2-base (0.5555, 16 % higher)."
    )


def test_divergence_in_words():
    assert describe_divergence(make_run(1.0, decay=0.1, diverged_at=7)) == (
        "adamw, learning rate 0.01, wd 0.1, seed 0: not finite from step 7 on"
    )
    assert "above an untrained network" in describe_divergence(make_run(1.0, diverged_at=1000))


def test_scores_need_no_jax():
    modules = "analysis.standings, analysis.caveats, report.csv, report.tables"
    names = ", ".join(f"celo2.evaluate.{name}" for name in modules.split(", "))
    script = f"import sys; import {names}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_curve_of_the_best_setting_is_the_mean_over_the_seeds():
    steps, losses = _cell(make_run(1.0), make_run(2.0, seed=1)).mean_curve()
    assert steps[-1] == 1000
    assert losses[-1] == pytest.approx(1.5)
    assert np.all(np.diff(losses) < 0)
