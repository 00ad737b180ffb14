"""The JAX rule against the reference's recorded runs, the golden runs and the float64 oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import celo2
from celo2.config import NUM_OUTPUTS
from helpers import quick
from helpers.rule_runs import (
    GOLDEN,
    REFERENCE_RUNS,
    Leaves,
    Run,
    load_reduced,
    load_reference,
    load_run,
)
from helpers.tolerances import relative_error, tolerance
from oracle import rule

GOLDEN_RUNS = ("base", "bias_corrected", "celo2", "subset", "unnormalized")


GRADIENT_RUNS = tuple(name for name in REFERENCE_RUNS if name.startswith("gradients_"))  # of one rule
COMPILED_IN_FULL = "celo2_default"


def replay_jax(run: Run, *, jit: bool = True, dtype: Any = jnp.float32, update: Any = None) -> list[Leaves]:
    """The transform's updates at every step, given the recorded parameters and gradients."""

    def cast(leaves: Leaves) -> dict[str, jax.Array]:
        return {name: jnp.asarray(leaf, dtype) for name, leaf in leaves.items()}

    tx = celo2.scale_by_celo2(run.theta, **run.options)
    update = update or (jax.jit(tx.update) if jit else tx.update)
    state = tx.init(cast(run.params[0]))
    updates = []
    for params, grads in zip(run.params, run.grads, strict=True):
        step, state = update(cast(grads), state, cast(params))
        updates.append({name: np.asarray(leaf) for name, leaf in step.items()})
    return updates


def assert_agree(actual: list[Leaves], expected: list[Leaves], comparison: str) -> None:
    """Every leaf of every step is within the tolerance of this comparison."""
    for t, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        errors = {name: relative_error(ours[name], theirs[name]) for name in theirs}
        assert max(errors.values()) <= tolerance(comparison), f"step {t}: {errors}"


def reference_comparison(run: Run) -> str:
    return "jax, reference" + (", orthogonalized" if run.options["orthogonalize"] else "")


@pytest.mark.parametrize(
    "name", [name for name in REFERENCE_RUNS if name not in (*GRADIENT_RUNS, COMPILED_IN_FULL)]
)
def test_rule_matches_reference(shared: Path, name: str) -> None:
    run = load_reference(shared, name)
    assert_agree(replay_jax(run), run.updates, reference_comparison(run))


@pytest.mark.parametrize("name", reference.RULE_RUNS)
def test_rule_matches_reduced_reference(name: str) -> None:
    run = load_reduced(name)
    assert_agree(replay_jax(run), run.updates, reference_comparison(run))


def test_rule_compiled_as_users_do_matches_reference(shared: Path, full_optimization: None) -> None:
    run = load_reference(shared, COMPILED_IN_FULL)
    assert_agree(replay_jax(run), run.updates, reference_comparison(run))


def test_rule_matches_reference_on_gradients_of_any_kind(shared: Path) -> None:
    """Four runs of one rule, which is compiled once."""
    runs = [load_reference(shared, name) for name in GRADIENT_RUNS]
    update = jax.jit(celo2.scale_by_celo2(runs[0].theta, **runs[0].options).update)
    for run in runs:
        assert run.options == runs[0].options
        np.testing.assert_equal(run.theta, runs[0].theta)
        assert_agree(replay_jax(run, update=update), run.updates, reference_comparison(run))


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_rule_matches_golden(name: str) -> None:
    run = load_run(GOLDEN / f"{name}.npz")
    assert_agree(replay_jax(run), run.updates, "jax, golden")


def test_rule_op_by_op_matches_golden() -> None:
    run = load_run(GOLDEN / "subset.npz").select({"scalar", "vector", "stack"})
    with jax.disable_jit():
        assert_agree(replay_jax(run, jit=False), run.updates, "jax, golden")


def test_upstream_tree_equals_flat_arrays() -> None:
    run = load_run(GOLDEN / "subset.npz").select({"vector"})
    nested = Run(run.options, {"ff_mod_stack": {"~": run.theta}}, run.params, run.grads, run.updates)  # type: ignore[dict-item]
    for ours, theirs in zip(replay_jax(nested), replay_jax(run), strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


SWITCHES = tuple(name for name in celo2.RuleConfig.option_names() if name.startswith("with_"))
MODES = ("param_scale_mult", "precondition_output", "normalize_input", "aggregate_mag", "bias_correction")
DECAYS = st.floats(0.0, 0.999)


@st.composite
def rule_options(draw: st.DrawFn) -> dict[str, Any]:
    """Any options that `RuleConfig` allows, small, with `with_g` on so that vectors have a feature."""
    count = draw(st.integers(1, 3))
    options: dict[str, Any] = {name: draw(st.booleans()) for name in (*SWITCHES, *MODES, "orthogonalize")}
    rms_count = draw(st.sampled_from((1, count)))
    layers = draw(st.integers(0, 3))
    return options | {
        "with_g": True,
        "normalize_output": True,
        "ff_hidden_size": draw(st.integers(1, 4)) if layers else NUM_OUTPUTS,
        "ff_hidden_layers": layers,
        "initial_momentum_decays": draw(st.lists(DECAYS, min_size=count, max_size=count)),
        "initial_rms_decays": draw(st.lists(DECAYS, min_size=rms_count, max_size=rms_count)),
        "initial_adafactor_decays": draw(st.lists(DECAYS, min_size=count, max_size=count)),
        "exp_mult": draw(st.sampled_from((0.0, 0.1))),
        "rmsmult": draw(st.sampled_from((1.0, 0.2))),
        "mlp_activation": draw(st.sampled_from(("relu", "tanh"))),
        "ns_iters": draw(st.integers(0, 3)),
    }


SHAPES = {"scalar": (), "vector": (24,), "stack": (3, 12, 10)}  # as in the golden runs: compiled once
THIN_SHAPES = {
    "row": (1, 7),
    "column": (7, 1),
    "one": (1, 1),
    "one of a vector": (1,),
    "stack of rows": (2, 1, 3),
    "stack of columns": (3, 4, 1),
    "stack of one": (1, 4, 3),
    "outer ones": (1, 5, 1),
}


def make_run(options: dict[str, Any], seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Run:
    """Two steps on leaves of these shapes, the expected updates from the oracle."""
    rng = np.random.default_rng(seed)
    parsed = rule.make_options(options)
    theta = {
        name: rng.standard_normal(s).astype(np.float32) for name, s in rule.weight_shapes(parsed).items()
    }
    states = {name: rule.init(shape, parsed) for name, shape in shapes.items()}
    run = Run(options, theta, [], [], [])
    for scale in (1.0, 0.01):
        params = {n: np.asarray(rng.standard_normal(s), np.float32) for n, s in shapes.items()}
        grads = {n: np.asarray(scale * rng.standard_normal(s), np.float32) for n, s in shapes.items()}
        updates = {}
        for name in shapes:
            updates[name], states[name] = rule.update(theta, states[name], grads[name], params[name], parsed)
        for record, leaves in zip(
            (run.params, run.grads, run.updates), (params, grads, updates), strict=True
        ):
            record.append(leaves)
    return run


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(options=rule_options(), seed=st.integers(0, 1000))
def test_rule_matches_oracle_for_any_options(options: dict[str, Any], seed: int) -> None:
    run = make_run(options, seed)
    with jax.enable_x64(True):
        assert_agree(replay_jax(run, jit=False, dtype=jnp.float64), run.updates, "jax float64, oracle")
    assert_agree(replay_jax(run, jit=False), run.updates, "jax float32, oracle")


@pytest.mark.parametrize("orthogonalize", [False, True], ids=["celo2-base", "celo2"])
def test_rule_matches_oracle_on_axes_of_length_one(orthogonalize: bool) -> None:
    run = make_run({"orthogonalize": orthogonalize, **quick.SMALL_RULE}, seed=0, shapes=THIN_SHAPES)
    with jax.enable_x64(True):
        assert_agree(replay_jax(run, dtype=jnp.float64), run.updates, "jax float64, oracle")
