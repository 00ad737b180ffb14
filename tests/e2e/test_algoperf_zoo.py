"""AlgoPerf submissions of the optimizers before Celo2, with weights that are not in this repository."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from celo2 import zoo
from helpers import algoperf_stand_in
from helpers.algoperf_stand_in import jax_workloads
from helpers.tolerances import relative_error, tolerance

pytestmark = pytest.mark.usefixtures("promotion_of_a_users_program")

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "algoperf"
GENERATE = SimpleNamespace(**runpy.run_path(str(FOLDER / "generate.py"), run_name="generate"))
SHAPES = {"kernel": (6, 4), "bias": (4,)}
HORIZON = jax_workloads.Transformer.step_hint


def find_weights(kind: str, shared: Path, folder: Path) -> Path:
    """The released weights; small random ones of VeLO, which has none here."""
    if kind != "velo":
        return shared / "checkpoints" / f"{kind}.theta.state"
    config, rng = zoo.PRESETS["velo"].replace(lstm_size=8, num_mlps=2), np.random.default_rng(0)
    like = jax.eval_shape(lambda: zoo.init_theta("velo", jax.random.key(0), lstm_size=8, num_mlps=2))
    arrays = {
        name: (max(leaf.size, 1) ** -0.25 * rng.standard_normal(leaf.shape)).astype(np.float32)
        for name, leaf in like.items()
    }
    zoo.save_weights(folder / "velo.safetensors", zoo.ZooWeights(arrays, config))
    return folder / "velo.safetensors"


def write(kind: str, shared: Path, folder: Path, ruleset: str = "self") -> tuple[Any, Path]:
    weights = find_weights(kind, shared, folder)
    arguments = [kind, "--weights", str(weights), "--out", str(folder / kind), "--ruleset", ruleset]
    assert GENERATE.main(arguments) == 0
    with algoperf_stand_in.install("jax"):
        return algoperf_stand_in.load_submission(folder / kind), weights


def draw(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("kind", ["celo", "celo_adam", "velo"])
def test_a_predecessors_submission_takes_the_packages_steps(kind: str, shared: Path, tmp_path: Path) -> None:
    submission, weights = write(kind, shared, tmp_path)
    text = (tmp_path / kind / "submission.py").read_text("utf-8")
    assert not any(word in text for word in ("import celo2", "from celo2", "pallas", "optax", "numba"))
    params = jax.tree.map(lambda x: 0.01 * x, draw(0))  # small, so that their sums with changes round little
    workload = SimpleNamespace(step_hint=HORIZON)
    tx = zoo.make(kind, weights=weights, num_steps=HORIZON)
    state, update = submission.make_optimizer(workload, params, None)
    expected_state, update, expected_update = tx.init(params), jax.jit(update), jax.jit(tx.update)
    for count in range(4):
        grads, loss = draw(1 + count), jnp.float32(3.0 - 0.5 * count)
        new, state = update(grads, state, params, loss)
        updates, expected_state = expected_update(grads, expected_state, params, value=loss)
        for name in SHAPES:
            error = relative_error(new[name] - params[name], updates[name])
            assert error < tolerance("algoperf, zoo"), (name, count)
        params = new


def test_a_predecessors_submission_trains_and_describes_itself(shared: Path, tmp_path: Path) -> None:
    submission, _ = write("celo_adam", shared, tmp_path, "external")
    run = jax_workloads.Run(submission, jax_workloads.Transformer(), None)
    traces, losses = run.count_traces(), [run.step() for _ in range(8)]
    assert len(traces) == 1
    assert run.params["EncoderBlock_0"]["attn_scale"].dtype == jnp.bfloat16
    assert np.all(np.isfinite(losses))
    assert len(set(losses)) == 8
    info = yaml.safe_load((tmp_path / "celo_adam" / "submission_info.yml").read_text("utf-8"))
    assert info["ruleset"] == "external-tuning"
    assert len(yaml.safe_load((tmp_path / "celo_adam" / "tuning_search_space.json").read_text("utf-8"))) == 5


def test_weights_of_another_optimizer_are_refused(shared: Path, tmp_path: Path) -> None:
    weights = shared / "checkpoints" / "celo.theta.state"
    with pytest.raises(ValueError, match="has weights of 'celo', asked for 'celo_adam'"):
        GENERATE.write_predecessor("celo_adam", weights, tmp_path, "self")
