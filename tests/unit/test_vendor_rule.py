"""`tools/vendor_rule.py` writes the rule of the minimal files, with the exact numbers, into other files."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from celo2.config import RuleConfig
from celo2.weights import Weights, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = ["jax", "torch"]
TOOL = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "vendor_rule.py")))


def make_weights(scale: float = 1.0, **options: Any) -> Weights:
    """Weights without zeros, of all magnitudes."""
    config, rng = RuleConfig(**options), np.random.default_rng(0)
    arrays = {
        name: (scale * rng.standard_normal(shape) * 10.0 ** rng.integers(-20, 20, shape)).astype(np.float32)
        for name, shape in config.weight_shapes().items()
    }
    return Weights(arrays, config)


def run_text(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "vendored"}
    exec(compile(text, "vendored", "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("weights", ["celo2", "celo2-base", None], ids=["celo2", "celo2-base", "no zeros"])
def test_the_numbers_read_back_exactly(framework: Any, weights: str | None) -> None:
    expected = make_weights() if weights is None else load_checkpoint(weights)
    rule = run_text(TOOL.vendor(framework, weights or expected, imports=True))["RULE"]
    assert rule.weights.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        found = np.asarray(rule.weights[name])
        assert found.dtype == np.float32
        assert found.shape == array.shape
        assert np.array_equal(found, array), name
    decays = (tuple(rule.momentum), (rule.rms,), tuple(rule.factored))
    config = expected.config
    assert decays == (
        config.initial_momentum_decays,
        config.initial_rms_decays,
        config.initial_adafactor_decays,
    )


def test_the_text_computes_what_the_minimal_file_computes() -> None:
    minimal = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "celo2_minimal_torch.py")))
    vendored = SimpleNamespace(**run_text(TOOL.vendor("torch", imports=True)))
    grad, param = torch.linspace(-1, 1, 24).reshape(4, 6), torch.ones(4, 6)
    steps = [
        each.rule_step(rule, grad, param, each.init_leaf(param))[0]
        for each, rule in ((minimal, minimal.read_rule()), (vendored, vendored.RULE))
    ]
    assert torch.equal(*steps)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_text_depends_on_nothing_of_the_package(framework: Any) -> None:
    text = TOOL.vendor(framework, imports=True)
    code = [
        ast.dump(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert code
    assert not [node for node in code if "celo2" in node or "safetensors" in node or "json" in node]
    assert not {"read_rule", "main"} & {getattr(node, "name", "") for node in ast.parse(text).body}
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_text_has_the_form_of_the_repository(framework: Any) -> None:
    text = TOOL.vendor(framework, make_weights(), imports=True)
    for command in (["check", "--ignore=D"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", "rule.py", "-"]
        done = subprocess.run(ruff, input=text, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


def test_names_can_be_left_out() -> None:
    names = run_text(TOOL.vendor("torch", without=["init", "update", "adamw_step"], imports=True))
    assert "rule_step" in names
    assert not {"init", "update", "adamw_step"} & names.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"without": ["accumulate"]}, "rule_step needs accumulate"),
        ({"without": ["no_such"]}, "has no no_such; it has"),
        ({"without": ["Rule"]}, "Rule"),
        ({"weights": make_weights(ns_iters=4)}, "do not support these weights' options"),
        ({"weights": make_weights(initial_rms_decays=(0.9, 0.99, 0.999))}, "do not support"),
    ],
    ids=["needed", "unknown", "the numbers", "other polynomial", "more decays"],
)
def test_what_cannot_be_written_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TOOL.vendor("torch", **arguments)


def test_a_file_is_filled_between_its_markers_only(tmp_path: Path, capsys) -> None:
    file = tmp_path / "script.py"
    file.write_text("before\n# <rule jax celo2-base without init update>\nstale\n# </rule>\nafter\n")
    assert TOOL.main(["--check", str(file)]) == 1
    assert f"{file} is out of date; run python tools/vendor_rule.py {file}" in capsys.readouterr().out
    assert "stale" in file.read_text()
    assert TOOL.main([str(file)]) == 0
    text = file.read_text()
    assert text.startswith("before\n# <rule jax celo2-base without init update>\n# The rule")
    assert text.endswith("\n# </rule>\nafter\n")
    assert "stale" not in text
    assert TOOL.vendor("jax", "celo2-base", without=["init", "update"]) in text
    assert TOOL.main(["--check", str(file)]) == 0
    assert "written" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["nothing\n", "# <rule numpy celo2>\n# </rule>\n", "# <rule torch>\n# </rule>\n"],
    ids=["no markers", "unknown framework", "no weights"],
)
def test_a_file_with_wrong_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="# <rule FRAMEWORK WEIGHTS>"):
        TOOL.fill(text)


def test_the_files_of_the_repository_have_the_rule_of_now() -> None:
    files = TOOL.marked_files()
    stale = [path.name for path in files if TOOL.fill(path.read_text("utf-8")) != path.read_text("utf-8")]
    assert not stale, "run python tools/vendor_rule.py"
