"""A comparison: its settings, its bookkeeping, its table."""

from __future__ import annotations

import io
import math

import numpy as np
import optax
import pytest
from rich.console import Console

from celo2.baselines import OPTIMIZERS, find_optimizer, make_optimizer
from celo2.config import RuleConfig
from celo2.evaluate.comparison.compare import CompareConfig, CompareProgress, compare
from celo2.evaluate.comparison.summary import MeanStd, caveats, summarize
from celo2.evaluate.comparison.tables import COLUMNS, make_rows, make_table
from celo2.tasks.registry import make_task
from celo2.training.timing import StepTimer
from celo2.weights.checkpoint import Weights, save_weights
from helpers.compare_examples import make_comparison, make_entry

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_default_grid_is_log_uniform_and_as_large_for_every_optimizer(name):
    rates = np.asarray(find_optimizer(name).learning_rates(7))
    assert len(rates) == 7
    ratios = rates[1:] / rates[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=0.02)  # the rates have three digits
    assert find_optimizer(name).learning_rates(1) == pytest.approx((rates[3],), rel=0.01)


def test_grid_of_no_learning_rate_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        find_optimizer("adamw").learning_rates(0)


@pytest.mark.parametrize(
    ("name", "nearest"), [("adamww", "adamw"), ("mun", "muon"), ("celo2:", "celo2"), ("adamw:x", "adamw")]
)
def test_unknown_optimizer_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        make_optimizer(name, 1e-3)


@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_rule_with_weights_from_a_file(tmp_path, variant):
    config = RuleConfig(orthogonalize=variant == "celo2")
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in config.weight_shapes().items()
    }
    path = tmp_path / "theta.safetensors"
    save_weights(path, Weights(arrays, config))
    spec = find_optimizer(f"{variant}:{path}")
    assert str(path) in spec.description
    other = "celo2" if variant == "celo2-base" else "celo2-base"
    with pytest.raises(ValueError, match="orthogonalize"):
        find_optimizer(f"{other}:{path}")


def test_muon_orthogonalises_hidden_matrices_only():
    rng = np.random.default_rng(0)
    params = {
        "layer_0": {"kernel": np.float32(rng.normal(size=(12, 8)))},
        "layer_1": {"kernel": np.float32(rng.normal(size=(8, 8)))},
        "head": {"kernel": np.float32(rng.normal(size=(8, 5)))},
    }
    optimizer = make_optimizer("muon", 1.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    spread = {name: np.linalg.cond(np.asarray(layer["kernel"])) for name, layer in updates.items()}
    # five Newton–Schulz iterations leave singular values within about 0.7 to 1.2 of each other
    assert spread["layer_0"] < 2.5
    assert spread["layer_1"] < 2.5
    np.testing.assert_allclose(
        np.abs(updates["head"]["kernel"]), np.abs(updates["head"]["kernel"]).max(), rtol=1e-2
    )


def test_quick_settings_yield_to_explicit_ones():
    config = CompareConfig(quick=True, steps=77)
    assert config.steps == 77
    assert config.seeds < CompareConfig().seeds
    assert config.num_learning_rates < CompareConfig().num_learning_rates


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "fashion-mpl"}, "did you mean 'fashion-mlp'"),
        ({"optimizers": ("adamww",)}, "did you mean 'adamw'"),
        ({"optimizers": ()}, "one or more different"),
        ({"optimizers": ("sgd", "sgd")}, "one or more different"),
        ({"seeds": -1}, "seeds must be a whole number from 0"),
        ({"weight_decay": math.nan}, "weight_decay must be finite and not negative"),
        ({"max_memory": 0.0}, "max_memory must be positive"),
        ({"learning_rates": {"sgdd": (0.1,)}, "optimizers": ("sgd",)}, "did you mean 'sgd'"),
    ],
    ids=["task", "optimizer", "none", "twice", "seeds", "decay", "memory", "rates-of-none"],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**settings)


def test_learning_rates_of_one_optimizer_go_before_those_of_all():
    config = CompareConfig(
        optimizers=("sgd", "adamw", "muon"), learning_rates={"sgd": (0.3, 0.1), "all": (0.5,)}
    )
    assert config.learning_rates_of(find_optimizer("sgd")) == (0.1, 0.3)
    assert config.learning_rates_of(find_optimizer("adamw")) == (0.5,)


def test_compare_treats_optimizers_alike(instant_training):
    result = compare(
        CompareConfig(task="quadratic", optimizers=("sgd", "adamw"), steps=9, seeds=3, first_seed=4)
    )
    assert [entry.name for entry in result.entries] == ["sgd", "adamw"]
    (rates_a, *rest_a), (rates_b, *rest_b) = instant_training
    assert len(rates_a) == len(rates_b) == 7
    assert rest_a == rest_b == [(4, 5, 6), 9]
    assert result.task.num_parameters == 64 * 32
    assert result.unfinished == ()


def test_compare_progress_counts_work_by_step_time(instant_training):
    seen: list[CompareProgress] = []
    compare(CompareConfig(task="quadratic", optimizers=("sgd", "adamw")), seen.append)
    # the second optimizer's steps take twice as long as the first's
    assert [report.done for report in seen] == pytest.approx([0.0, 1 / 6, 1 / 3, 2 / 3, 1.0])
    assert [report.optimizer for report in seen] == ["sgd, adamw", "sgd", "sgd", "adamw", "adamw"]


def test_interrupt_keeps_what_is_finished(interrupt_training):
    interrupt_training(1)
    result = compare(CompareConfig(task="quadratic", optimizers=("sgd", "adamw", "muon")))
    assert [entry.name for entry in result.entries] == ["sgd"]
    assert result.unfinished == ("adamw", "muon")
    assert any("interrupted before adamw, muon" in caveat for caveat in caveats(result))


def test_interrupt_with_nothing_finished_goes_up(interrupt_training):
    interrupt_training(0)
    with pytest.raises(KeyboardInterrupt):
        compare(CompareConfig(task="quadratic", optimizers=("sgd",)))


def test_summary_is_over_the_seeds_at_the_best_learning_rate():
    result = make_comparison(make_entry("adamw", [[0.9, 0.9], [0.2, 0.4], [0.5, 0.5]], seconds=2e-3))
    (summary,) = summarize(result)
    assert summary.learning_rate == pytest.approx(1e-2)
    assert summary.final_train_loss == pytest.approx((0.3, math.sqrt(0.02)))
    assert summary.time_ratio == 1.0
    assert str(summary.final_train_loss) == "0.3000 ±0.1414"


def test_mean_of_one_seed_has_no_deviation():
    assert str(MeanStd.over(np.array([0.25]))) == "0.2500"
    assert MeanStd.over(np.array([])) is None


def test_diverged_optimizer_stays_in_the_table():
    bad = make_entry("sgd", [[np.nan, 0.5], [9.0, 9.0]])
    result = make_comparison(make_entry("adamw", [[0.9, 0.9], [0.2, 0.4], [0.5, 0.5]]), bad)
    row = dict(zip(COLUMNS, make_rows(result)[1], strict=True))
    assert row["optimizer"] == "sgd"
    assert row["final train loss"] == "diverged"
    assert row["diverged"] == "3/4"
    assert any("sgd diverged at every learning rate" in caveat for caveat in caveats(result))


@pytest.mark.parametrize(
    ("final", "caveat"),
    [
        ([[0.2, 0.2], [0.3, 0.3]], "adamw: the best learning rate, 0.001, is the lowest tried"),
        ([[0.3, 0.3], [0.2, 0.2]], "adamw: the best learning rate, 0.1, is the highest tried"),
        ([[0.3, 0.3]], "one learning rate only"),
        ([[0.3, 0.3], [0.2, 0.2], [0.3, np.nan]], "adamw diverged at learning rate 0.1 (1 of 2)."),
        ([[0.3], [0.2], [0.3]], "There is one seed"),
    ],
    ids=["lowest", "highest", "untuned", "diverged", "one-seed"],
)
def test_caveats(final, caveat):
    result = make_comparison(make_entry("adamw", final), seeds=len(final[0]))
    assert any(caveat in found for found in caveats(result)), caveats(result)


def test_no_caveat_where_there_is_none():
    assert caveats(make_comparison(make_entry("adamw", [[0.9, 0.9], [0.2, 0.4], [0.5, 0.5]]))) == []


@pytest.mark.parametrize("width", [60, 200])
def test_table_shows_every_figure_whole(width):
    result = make_comparison(
        make_entry("adamw", [[0.9, 0.9], [0.2, 0.4]]), make_entry("celo2-base", [[0.9, 0.9], [0.3, 0.3]])
    )
    console = Console(width=width, file=io.StringIO())
    console.print(make_table(result, width))
    words = console.file.getvalue().split()
    for text in ("0.3000", "±0.1414", "adamw", "celo2-base", "a-data-set-sample,", "(1×)"):
        assert text in words


def test_measured_costs_have_the_state_of_each_optimizer():
    task = make_task("quadratic")
    costs = StepTimer(task, {"sgd": optax.sgd(0.1), "momentum": optax.sgd(0.1, momentum=0.9)}).measure()
    assert costs["momentum"].state_bytes - costs["sgd"].state_bytes == 4 * 64 * 32
    assert all(cost.seconds > 0 for cost in costs.values())
