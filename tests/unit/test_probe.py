"""Probes: what is measured, how it is scored, and that nothing is compiled twice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from compare_examples import make_fake_grid

from celo2 import load_checkpoint
from celo2.evaluate.runner import run_grid
from celo2.jax.transform import celo2_base
from celo2.meta import probe as module
from celo2.meta.probe import FIRST_SEED, Probe, ProbeConfig, compute_score, describe_task, summarize_grid
from celo2.tasks.registry import make_task


def record(loss: float | None, untrained: float = 2.3) -> dict[str, Any]:
    return {"loss": loss, "untrained": untrained}


def test_best_rate_has_the_lowest_mean_among_those_without_a_diverged_run() -> None:
    found = summarize_grid(make_fake_grid([[0.9, 0.5], [0.3, 0.5], [0.1, np.nan]]))
    assert found["loss"] == pytest.approx(0.4)
    assert found["spread"] == pytest.approx(math.sqrt(0.02))
    assert (found["rate"], found["at_edge"]) == (pytest.approx(1e-2), False)
    assert found["losses"] == [pytest.approx(0.7), pytest.approx(0.4), None]
    assert found["untrained"] == 2.0


def test_one_seed_has_no_spread_and_the_highest_rate_is_an_edge() -> None:
    found = summarize_grid(make_fake_grid([[0.9], [0.5]]))
    assert found["spread"] is None
    assert found["at_edge"]
    assert describe_task(found) == "0.5000 at 0.1 (highest tried)"


def test_task_that_diverged_everywhere_has_no_loss() -> None:
    found = summarize_grid(make_fake_grid([[np.inf], [3.0]]))  # 3 is above an untrained network's loss
    assert (found["loss"], found["rate"], found["losses"]) == (None, None, [None, None])
    assert describe_task(found) == "diverged at every rate"


def test_score_is_the_log_of_the_geometric_mean_of_the_ratios() -> None:
    start = {"a": record(1.0), "b": record(4.0)}
    assert compute_score(start, start) == 0.0
    now = {"a": record(0.5), "b": record(3.0)}
    assert math.exp(compute_score(now, start) or 0.0) == pytest.approx(math.sqrt(0.5 * 0.75))


def test_score_does_not_depend_on_the_size_of_a_tasks_losses() -> None:
    start, now = {"a": record(1.0), "b": record(4.0)}, {"a": record(0.5), "b": record(3.0)}
    big_start, big = {**start, "b": record(400.0)}, {**now, "b": record(300.0)}
    assert compute_score(big, big_start) == pytest.approx(compute_score(now, start))


def test_diverged_weights_have_no_score_and_a_diverged_start_counts_as_untrained() -> None:
    assert compute_score({"a": record(1.0), "b": record(None)}, {"a": record(1.0), "b": record(1.0)}) is None
    score = compute_score({"a": record(1.0)}, {"a": record(None, untrained=2.0)})
    assert score == pytest.approx(math.log(0.5))


def test_loss_of_zero_has_a_score() -> None:
    score = compute_score({"a": record(0.0)}, {"a": record(1.0)})
    assert score is not None
    assert math.isfinite(score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("tiny-ln",)}, "did you mean 'tiny-lm'"),
        ({"tasks": ()}, "one or more different names"),
        ({"tasks": ("tiny-lm", "tiny-lm")}, "one or more different names"),
        ({"rates": ()}, "one or more positive"),
        ({"rates": (0.0,)}, "one or more positive"),
        ({"rates": (0.1, 0.1)}, "must differ"),
        ({"seeds": 0}, "at least 1 seed"),
        ({"steps": 1}, "2 steps"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_unusable_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**options)


class CountingRunner:
    """In place of `GridRunner`: the loss is theta's, and what is compiled is counted."""

    made: list[tuple] = []  # noqa: RUF012

    def __init__(self, task, _, rates, *, seeds, steps, **__) -> None:
        self.made.append((task.task.name, rates, tuple(seeds), steps))
        self.rates = rates

    def train(self, *, inputs):
        return make_fake_grid([[float(inputs[0]["w"])]] * len(self.rates), learning_rates=self.rates)


def test_tasks_are_compiled_once_and_seeds_are_not_a_comparisons(monkeypatch) -> None:
    monkeypatch.setattr(module, "GridRunner", CountingRunner)
    monkeypatch.setattr(CountingRunner, "made", [])
    probe = Probe(ProbeConfig(tasks=("quadratic", "digits-mlp"), seeds=2, steps=7), lambda *_: None)  # type: ignore[arg-type,return-value]
    losses = [probe.measure({"w": np.float32(loss)})["quadratic"]["loss"] for loss in (0.5, 0.25)]
    assert losses == [0.5, 0.25]
    rates, seeds = (1e-3, 3e-3, 1e-2), (FIRST_SEED, FIRST_SEED + 1)
    assert sorted(CountingRunner.made) == [(name, rates, seeds, 7) for name in ("digits-mlp", "quadratic")]


def test_probe_is_the_comparison_with_the_public_optimizer() -> None:
    """Weights as an argument of the program, the second time around, or as its constants."""
    weights = load_checkpoint("celo2-base")
    config = ProbeConfig(tasks=("quadratic",), rates=(3e-2, 1e-1), steps=12)
    probe = Probe.of_variant(config, "celo2-base")
    other = probe.measure({name: -array for name, array in weights.arrays.items()})["quadratic"]
    first, again = (probe.measure(weights.arrays)["quadratic"] for _ in range(2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    grid = run_grid(
        make_task("quadratic"),
        lambda schedule: celo2_base(schedule, weights=weights),
        config.rates,
        seeds=(FIRST_SEED,),
        steps=config.steps,
    )
    np.testing.assert_allclose(first["losses"], grid.scores, rtol=1e-4)
    assert other["loss"] != pytest.approx(first["loss"], rel=1e-3)
