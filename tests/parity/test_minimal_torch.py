"""`examples/celo2_minimal_torch.py`, the rule in one file of plain PyTorch, takes the package's steps."""

from __future__ import annotations

import dataclasses
import re
import runpy
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_minimal import BY_BRANCH, DECAY, LR, SCALES, SHAPES
from torch_replay import Replay

from celo2.torch import Celo2, Celo2Base
from celo2.weights import load_checkpoint
from helpers.tolerances import relative_error, tolerance

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILE = EXAMPLES / "celo2_minimal_torch.py"


@pytest.fixture(scope="module")
def minimal() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(FILE)))


def make_tree(seed: int, scale: float, names: Iterable[str] = SHAPES) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {k: torch.as_tensor(scale * rng.standard_normal(SHAPES[k])) for k in names}


@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_the_rule_in_one_file_takes_the_steps_of_the_package(minimal, variant: str) -> None:
    weights, params = load_checkpoint(variant), make_tree(0, 0.3)
    replay = Replay(weights.arrays, dataclasses.asdict(weights.config), SHAPES, torch.float64)
    rule = minimal.read_rule(variant).to(torch.float64)
    states = {name: minimal.init_leaf(param) for name, param in params.items()}
    as_arrays = {name: param.numpy() for name, param in params.items()}
    for count, scale in enumerate(SCALES):
        grads = make_tree(1 + count, scale)
        expected = replay.step({name: grad.numpy() for name, grad in grads.items()}, as_arrays)
        for name, grad in grads.items():
            base = variant == "celo2-base"
            step, states[name] = minimal.rule_step(rule, grad, params[name], states[name], base=base)
            assert relative_error(step, expected[name]) < tolerance("minimal, torch float64"), (name, count)


@pytest.mark.parametrize("base", [False, True], ids=["celo2", "celo2-base"])
def test_the_optimizer_in_one_file_trains_as_the_packages(minimal, base: bool) -> None:
    """AdamW's share at 20 times the rate, and decoupled weight decay, too."""
    start, params = make_tree(0, 0.3, BY_BRANCH), make_tree(0, 0.3, BY_BRANCH)
    expected = {name: torch.nn.Parameter(param.clone()) for name, param in start.items()}
    hidden = {name for name, branch in BY_BRANCH.items() if branch == "celo2"}
    groups = [
        {"params": [(k, p)], "algorithm": "celo2" if k in hidden else "adamw"} for k, p in expected.items()
    ]
    optimizer = (Celo2Base if base else Celo2)(groups, LR, weight_decay=DECAY)
    rule = minimal.read_rule("celo2-base" if base else "celo2").to(torch.float64)
    state = minimal.init(params, hidden)
    for count, scale in enumerate(SCALES):
        grads = make_tree(1 + count, scale, BY_BRANCH)
        state = minimal.update(rule, grads, state, params, hidden, LR, DECAY, base=base)
        for name, grad in grads.items():
            expected[name].grad = grad
        optimizer.step()
    for name in BY_BRANCH:
        changes = [end[name].detach() - start[name] for end in (params, expected)]
        assert relative_error(*changes) < tolerance("minimal, torch float64"), name


def test_the_torch_file_trains_a_network(minimal) -> None:
    losses = minimal.main(steps=15)
    assert losses[-1] < losses[0] / 2


def test_the_twins_have_the_same_parts_in_the_same_order() -> None:
    """But for `Rule.to`, which arrays of NumPy do not need."""
    twins = [(EXAMPLES / name).read_text("utf-8") for name in ("celo2_minimal.py", FILE.name)]
    definitions = [re.findall(r"^(?:class|def) (\w+)|^(# \d\.)", text, re.MULTILINE) for text in twins]
    assert definitions[0] == definitions[1]
