"""The predecessors against their recorded runs, and against the float64 oracle on harder ones."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from golden import reference
from zoo_runs import RUNS, Run, change_errors, load_reduced, load_run, make_run, random_theta, replay

from celo2.weights.schema import as_tree
from helpers.tolerances import tolerance
from oracle.zoo import OPTIMIZERS

SHAPES = {  # in pytree order; the first one's parameters are zeros
    "a_zero": (3, 2),
    "matrix": (3, 4),
    "rank5": (2, 1, 3, 2, 2),
    "row": (1, 5),
    "scalar": (),
    "single": (1,),
    "stack": (2, 1, 3),
    "vector": (5,),
}
FEW = ("matrix", "vector")  # where what is new does not depend on the shape
SIZES = {"lstm_size": 6}
VELO = {"lstm_size": 6, "num_mlps": 4}


class Case(NamedTuple):
    """A run: which optimizer, its options, the oracle's switches, and which tensors."""

    name: str
    options: dict[str, Any]
    switches: dict[str, Any]
    tensors: Collection[str] = tuple(SHAPES)


CASES = {
    "celo": Case("celo", SIZES, {}, FEW),
    "celo of three networks": Case("celo", {**SIZES, "num_mlps": 3}, {}),
    "celo_phase1": Case("celo_phase1", SIZES, {"phase": 1}, FEW),
    "celo_adam": Case("celo_adam", SIZES, {}),
    "adafac_mlp": Case("adafac_mlp", {}, {}),
    "rnn_mlp": Case("rnn_mlp", SIZES, {}),
    "nn_adam": Case("nn_adam", {**SIZES, "decay_strength": 0.1}, {"decay_strength": 0.1}),
    "velo": Case("velo", {**VELO, "ff_mult": 3.0}, {"ff_mult": 3.0}),
    "velo as first published": Case(
        "velo",
        {**VELO, "bugged_loss_features": True, "bugged_lstm_state": True},
        {"bugged_loss": True, "bugged_lstm": True},
        FEW,
    ),
}
STEPS, NUM_STEPS = 200, 150  # the run goes on beyond its announced end
THETA_SCALE = 0.3


def optimizer_errors(run: Run, name: str) -> list[float]:
    return change_errors(replay(run, RUNS[name][0]), run.params[1:], run.params[0])


def oracle_errors(run: Run, name: str) -> list[float]:
    optimizer, _ = RUNS[name]
    kind = optimizer.removesuffix("_phase1").removesuffix("_s")
    switches = {"phase": 1} if optimizer == "celo_phase1" else {}
    names = list(run.params[0])
    oracle = OPTIMIZERS[kind](
        as_tree(run.theta), [p.shape for p in run.params[0].values()], run.num_steps, **switches
    )
    after = [run.params[0]]
    for grads, loss in zip(run.grads, run.losses, strict=True):
        changes = oracle.update([grads[n] for n in names], list(after[-1].values()), loss)
        after.append({n: after[-1][n] + change for n, change in zip(names, changes, strict=True)})
    return change_errors(after[1:], run.params[1:], run.params[0])


@pytest.mark.parametrize("name", RUNS)
def test_optimizer_matches_its_recorded_run(shared: Path, name: str) -> None:
    errors = optimizer_errors(load_run(shared, name), name)
    assert errors[-1] <= RUNS[name][1].final
    assert max(errors) <= RUNS[name][1].largest


@pytest.mark.parametrize("name", RUNS)
def test_oracle_matches_the_recorded_run(shared: Path, name: str) -> None:
    errors = oracle_errors(load_run(shared, name), name)
    assert errors[-1] <= RUNS[name][1].final
    assert max(errors) <= RUNS[name][1].largest


@pytest.mark.parametrize("find_errors", [optimizer_errors, oracle_errors], ids=["optimizer", "oracle"])
def test_reduced_recorded_run_is_matched(find_errors: Callable[[Run, str], list[float]]) -> None:
    errors = find_errors(load_reduced(), reference.ZOO_RUN)
    assert len(errors) == reference.STEPS
    assert max(errors) <= RUNS[reference.ZOO_RUN][1].largest


@pytest.mark.parametrize("case", CASES)
def test_optimizer_matches_the_oracle_on_a_long_hostile_run(case: str) -> None:
    name, options, switches, tensors = CASES[case]
    shapes = {tensor: SHAPES[tensor] for tensor in tensors}
    rng = np.random.default_rng(0)
    theta = random_theta(name, rng, THETA_SCALE, **options)
    kind = name.removesuffix("_phase1")
    run = make_run(kind, theta, shapes, steps=STEPS, num_steps=NUM_STEPS, rng=rng, switches=switches)
    with jax.enable_x64(True):
        after = replay(run, name, dtype=np.float64, **options)
    errors = change_errors(after, run.params[1:], run.params[0])
    assert max(errors) <= tolerance("zoo float64, oracle")
