"""`celo2 meta-train` of a recipe with reverse-mode meta-gradients, begun and resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from processes import run

from celo2 import load_checkpoint

RECIPE = {
    "variant": "celo2-base",
    "families": ["quadratic", "regression"],
    "datasets": ["digits"],
    "tasks_per_set": 4,
    "rule_options": [
        "ff_hidden_size=2",
        "initial_momentum_decays=[0.9]",
        "initial_adafactor_decays=[0.9]",
    ],
    "start": "adam",
    "batch_size": 8,
    "truncation_length": 3,
    "min_unroll": 3,
    "max_unroll": 8,
}


@pytest.mark.parametrize(
    "options",
    [{"reverse_steps": 2}, {"estimator": "full-reverse", "meta_loss": "end"}],
    ids=["mixed", "whole"],
)
def test_run_trains_and_goes_on(
    tmp_path: Path, environment: dict[str, str], options: dict[str, str | int]
) -> None:
    recipe, out = tmp_path / "recipe.json", tmp_path / "run"
    recipe.write_text(json.dumps({**RECIPE, **options}))
    command = [sys.executable, "-m", "celo2", "meta-train", "--devices", "1", "--out", str(out)]
    run([*command, "--config", str(recipe), "--outer-steps", "2"], environment)
    run([*command, "--resume", "--outer-steps", "3"], environment)
    assert json.loads((out / "config.json").read_text()).items() >= options.items()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(record["step"], record["skipped"]) for record in records] == [(1, 0), (2, 0), (3, 0)]
    before, after = (
        load_checkpoint(out / "weights" / f"celo2-base-{step:06d}.safetensors").arrays for step in (2, 3)
    )
    assert all((after[name] != array).any() for name, array in before.items())
