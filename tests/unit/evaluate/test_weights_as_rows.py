"""Others' weights as rows of comparisons, suites and timings."""

from __future__ import annotations

import csv
import dataclasses
import html
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from celo2.baselines import find_optimizer
from celo2.commands import bench, compare, evaluate
from celo2.evaluate.bench import bench_tree
from celo2.evaluate.comparison import CompareConfig
from celo2.evaluate.suite.spec import Suite, load_suite
from celo2.weights.checkpoint import load_checkpoint, save_weights
from helpers.weights_examples import make_arrays, make_weights, save_port

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with a file of the public PyTorch port and one of the other variant."""
    monkeypatch.chdir(tmp_path)
    save_port(tmp_path / "elo.safetensors", make_arrays())
    save_weights(tmp_path / "base.safetensors", make_weights(orthogonalize=False))
    return tmp_path


def test_a_suite_names_weights_by_what_they_hold():
    suite = Suite(
        name="a-suite",
        tasks=("quadratic",),
        optimizers=("adamw", "elo.safetensors", "base.safetensors"),
        rates_of={"elo.safetensors": (0.1, 0.2)},
    ).with_rates({"base.safetensors": (0.3,), "adamw": (0.4,)})
    names = ("adamw", "celo2:elo.safetensors", "celo2-base:base.safetensors")
    assert suite.optimizers == names
    assert dict(suite.rates_of) == dict(zip(names, [(0.4,), (0.1, 0.2), (0.3,)], strict=True))
    assert dataclasses.replace(suite) == suite


def test_a_suite_refuses_one_file_under_two_names():
    with pytest.raises(ValueError, match="optimizers must be one or more different ones"):
        Suite(name="s", tasks=("quadratic",), optimizers=("elo.safetensors", "celo2:elo.safetensors"))


def test_a_suite_of_a_file_keeps_the_rates_of_the_weights_that_were_asked_for(here):
    lines = ['tasks = ["quadratic"]', 'optimizers = ["adamw"]', "[rates_of]", "adamw = [0.2]"]
    (here / "suite.toml").write_text("\n".join([*lines, '"elo.safetensors" = [0.1]']))
    suite = load_suite("suite.toml", optimizers=("celo2:elo.safetensors",))
    assert dict(suite.rates_of) == {"celo2:elo.safetensors": (0.1,)}


def test_a_comparison_takes_rates_by_the_file():
    config = CompareConfig(
        optimizers=("elo.safetensors", "adamw"), learning_rates={"elo.safetensors": (0.1, 0.2)}
    )
    assert config.suite().rates_of["celo2:elo.safetensors"] == (0.1, 0.2)


WRONG = {
    "missing": ("nothing.safetensors", "error: no weights at 'nothing.safetensors'"),
    "variant": ("celo2-base:elo.safetensors", "name them celo2:elo.safetensors"),
}


@pytest.mark.parametrize("command", [compare, evaluate, bench], ids=["compare", "evaluate", "bench"])
@pytest.mark.parametrize(("name", "message"), WRONG.values(), ids=WRONG)
def test_commands_explain_wrong_weights(command, name, message, capsys):
    words = [] if command is bench else ["--out", "out"]
    assert command.main(["--optimizers", f"{name},adamw", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_released_weights_are_rows_keyed_by_their_checksum(shared, instant_training, capsys):
    """The authors' Celo2 in this package's form and in the port's, and Celo, beside the shipped weights."""
    released = shared / "checkpoints" / "celo2_released.safetensors"
    save_port(Path("elo.safetensors"), load_checkpoint(released).arrays)
    predecessor = shared / "checkpoints" / "celo.theta.state"
    names = ["celo2", str(released), "elo.safetensors", str(predecessor), "adamw"]
    words = ["--task", "quadratic", "--quick", "--devices", "1", "--out", "out"]
    assert compare.main([*words, "--optimizers", ",".join(names)]) == 0
    full = ["celo2", f"celo2:{released}", "celo2:elo.safetensors", f"celo:{predecessor}", "adamw"]
    with Path("out", "runs.csv").open(encoding="utf-8", newline="") as file:
        weights = {row["optimizer"]: row["weights"] for row in csv.DictReader(file)}
    assert weights == {name: find_optimizer(name, num_steps=100).weights for name in full}
    assert weights[full[1]] == weights[full[2]] != weights["celo2"]
    page = html.unescape(Path("out", "report.html").read_text(encoding="utf-8"))
    assert f"celo2:elo.safetensors: weights from a file (weights {weights[full[2]][:16]}…)" in page
    assert "its own" in capsys.readouterr().out  # the rate of Celo


def test_bench_names_the_weights():
    tree = {"kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    rows = {row.optimizer: row.weights for row in bench_tree(tree, ["base.safetensors"], timed=False)}
    name = "celo2-base:base.safetensors"
    assert rows == {"adamw": "", name: find_optimizer(name).weights}
