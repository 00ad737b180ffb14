"""The tutorial on your own task, optimizer and family: its code runs, and its commands with it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from celo2.baselines import OPTIMIZERS
from celo2.commands import compare, meta_train
from celo2.evaluate import arrange, load_results
from celo2.tasks import task_from_model
from celo2.tasks.registry import TASKS, check_task

PAGE = Path(__file__).parents[2] / "docs" / "your_own.md"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's blocks but the last as `mymodule.py` in the current folder; the last block."""
    *blocks, last = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mymodule.py").write_text("\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
    for registry in (TASKS, OPTIMIZERS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    return last


def test_its_task_and_optimizer_are_compared_by_the_command(module: str, tmp_path: Path, capsys) -> None:
    words = ["--task", "mymodule:make_task", "--optimizers", "celo2,mymodule:make_optimizer", "--quick"]
    assert compare.main([*words, "--steps", "20", "--out", str(tmp_path / "out")]) == 0
    [task] = arrange(load_results(tmp_path / "out").results).tasks
    assert set(task.cells) == {"celo2", "mymodule:make_optimizer"}
    assert task.facts.num_parameters == 32 + 32 + 32 * 32 + 32 + 32 + 1
    assert "SGD with momentum and decoupled weight decay" in (tmp_path / "out" / "report.html").read_text()
    assert "validation loss" in capsys.readouterr().out.splitlines()[-1]


def test_its_family_is_meta_trained_by_the_command(module: str, tmp_path: Path) -> None:
    words = [
        "--families",
        "mymodule:SparseRegression:2",
        "quadratic",
        "--start",
        "adam",
        "--outer-steps",
        "2",
    ]
    sizes = ["--tasks-per-set", "3", "--truncation-length", "2", "--min-unroll", "2", "--max-unroll", "4"]
    out = tmp_path / "run"
    assert meta_train.main([*words, *sizes, "--devices", "1", "--out", str(out)]) == 0
    assert '"mymodule:SparseRegression"' in (out / "metrics.jsonl").read_text()


def test_its_nnx_model_and_its_python_run(module: str, capsys) -> None:
    mymodule = importlib.import_module("mymodule")
    task = mymodule.make_task()
    arrays = (task.dataset.train, task.dataset.valid)
    loss = lambda model, batch: ((model(batch["x"]) - batch["y"]) ** 2).mean()  # noqa: E731
    check_task("nnx", task_from_model("nnx", mymodule.make_nnx, loss, *arrays))
    exec(module, vars(mymodule))
    assert capsys.readouterr().out.strip() in ("['celo2']", "['heavy-ball']")
