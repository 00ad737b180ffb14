"""`celo2 bench`: the figures of a small tree, and the trees it knows."""

from __future__ import annotations

import json

import pytest

from celo2.commands.bench import main
from celo2.evaluate.bench import BenchRow, bench_tree, bench_whole_step
from celo2.evaluate.bench_trees import TREES, count_parameters
from celo2.tasks.language.tiny_lm import TransformerConfig

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize(
    ("name", "millions"),
    [("mlp", 0.118282), ("vit-s", 22.05), ("gpt2-15m", 14.9), ("gpt2-124m", 124.4), ("gpt3-xl", 1315.6)],
)
def test_trees_have_the_published_sizes(name: str, millions: float) -> None:
    assert count_parameters(TREES[name].make()) / 1e6 == pytest.approx(millions, rel=2e-3)


def test_bench_writes_every_figure(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    words = ["--tree", "mlp", "--optimizers", "sgdm", "--seconds", "0.01", "--json", str(path)]
    assert main(words) == 0
    record = json.loads(path.read_text())
    by_name = {row["optimizer"]: row for row in record["rows"]}
    assert list(by_name) == ["adamw", "sgdm"]  # the reference takes part unasked
    assert by_name["adamw"]["ratio"] == 1.0
    assert by_name["adamw"]["state_bytes"] == 8 * by_name["adamw"]["num_parameters"] + 4  # and the count
    assert by_name["sgdm"]["state_bytes"] == 4 * by_name["sgdm"]["num_parameters"]
    assert all(row["seconds"] > 0 and row["compile_seconds"] > 0 for row in by_name.values())
    assert "commit" in record["environment"]
    assert "sgdm" in capsys.readouterr().out


def test_a_tree_too_large_to_run_is_compiled_only() -> None:
    rows = bench_tree(TREES["mlp"].make(), ["sgdm"], timed=False)
    assert [row.seconds for row in rows] == [None, None]
    assert all(row.compile_seconds > 0 for row in rows)


def test_a_whole_training_step_is_timed() -> None:
    tiny = TransformerConfig(width=8, num_layers=1, num_heads=2, context=8)
    rows = bench_whole_step(["sgdm"], config=tiny, batch_size=2, budget=0.01)
    assert [row.optimizer for row in rows] == ["adamw", "sgdm"]
    assert rows[0].state_bytes == 8 * rows[0].num_parameters + 4  # and the count
    assert all(row.seconds and row.ratio for row in rows)


def test_cells_of_a_row_are_in_the_units_of_the_columns() -> None:
    row = BenchRow("rule", 1000, 2e-3, 4.0, 1.5, 16_000, 8_000)
    assert row.cells() == ("rule", "2.00", "2000.00", "4", "1.5", "16.00", "2.00")
    compiled_only = row._replace(seconds=None, ratio=None, temp_bytes=None)
    assert compiled_only.cells() == ("rule", "–", "–", "–", "1.5", "16.00", "–")


def test_unknown_tree_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tree", "gpt5"])
    assert "gpt2-15m" in capsys.readouterr().err
