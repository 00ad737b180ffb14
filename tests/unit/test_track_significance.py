"""The optimizer track's tests of significance, against values worked by hand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "nanogpt_track"
TRACK = SimpleNamespace(**runpy.run_path(str(FOLDER / "significance.py")))


def make_entry(step: int, *losses: float) -> Any:
    return TRACK.Entry(step, losses, {})


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((3.2760,), True),
        ((3.2761,), False),
        ((3.279, 3.277, 3.277, 3.278), True),
        ((3.279,) * 4, False),
        ((3.278,) * 4, True),
        ((3.278, 3.278, 3.278, 3.27801), False),
    ],
    ids=[
        "one at its target",
        "one above it",
        "four by enough",
        "four by too little",
        "four by just enough",
        "four by a last digit too little",
    ],
)
def test_the_target_is_reached_by_a_margin(losses: tuple[float, ...], expected: bool) -> None:
    """Four runs: (3.28 − 3.27775) · 2 = 0.0045 and (3.28 − 3.278) · 2 = 0.004 are enough, 0.002 is not."""
    assert TRACK.reaches_target(losses) is expected


def test_the_target_statistic_is_that_of_an_accepted_record() -> None:
    """Eight runs with the mean 3.278329 were accepted at (3.28 − 3.278329) · √8 = 0.00473."""
    assert TRACK.target_statistic([3.278329] * 8) == pytest.approx(0.00473, abs=5e-6)


@pytest.mark.parametrize(
    ("runs", "statistic", "better"),
    [(4, 0.00495, True), (1, 0.00247, False)],
    ids=["four runs each", "one run each"],
)
def test_steps_and_loss_count_together(runs: int, statistic: float, better: bool) -> None:
    """100 steps less for a loss 0.001 higher: 0.0045 − 0.001 = 0.0035, over √(1/2) or √2."""
    new, old = make_entry(3150, *[3.279] * runs), make_entry(3250, *[3.278] * runs)
    assert TRACK.difference_statistic(new, old) == pytest.approx(statistic, abs=1e-5)
    assert TRACK.is_better(new, old) is better
    assert TRACK.difference_statistic(old, new) == pytest.approx(-statistic, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "better"), [(3.278, True), (3.27801, False)], ids=["just enough", "a last digit too little"]
)
def test_an_entry_is_better_at_the_margin_itself(loss: float, better: bool) -> None:
    """Eight runs each and equal steps: (3.280 − 3.278) / √(1/8 + 1/8) = 0.004."""
    new, old = make_entry(3250, *[loss] * 8), make_entry(3250, *[3.280] * 8)
    assert TRACK.is_better(new, old) is better


def test_more_runs_of_one_entry_alone_help_less() -> None:
    """√(1/8 + 1/2) = 0.7906."""
    new, old = make_entry(3250, *[3.276] * 8), make_entry(3250, *[3.280] * 2)
    assert TRACK.difference_statistic(new, old) == pytest.approx(0.004 / 0.7906, rel=1e-4)


def test_the_probability_is_of_the_normal_distribution() -> None:
    """1 − Φ(0) = 0.5; 0.004 is 3.077 standard deviations, 1 − Φ(3.077) = 0.00105; 1 − Φ(1.96) = 0.025."""
    assert TRACK.chance(0.0) == 0.5
    assert TRACK.chance(0.004) == pytest.approx(0.00105, abs=5e-6)
    assert TRACK.chance(1.96 * TRACK.SIGMA) == pytest.approx(0.025, abs=5e-6)


def write_log(
    folder: Path, name: str, loss: float, code: str = "code", end: str | None = None, **settings: Any
):
    """A log as far as it is read; the code has lines that look like results."""
    own = {
        "optimizer": "celo2",
        "lr": 1e-3,
        "decay": 1.0,
        "rest": "share",
        "warmup": 0,
        "cooldown": 0.7,
        "steps": 100,
        "grad_scale": 1.0,
        "stop_step": 100,
        "seed": 0,
        "tiny": False,
        "data": "data/fineweb10B",
        "val_tokens": 10_485_760,
        "batch_sequences": 512,
        "context": 1024,
        "vocabulary": 50_304,
        "width": 768,
        "layers": 12,
        "head_width": 128,
        "dtype": "bfloat16",
        **settings,
    }
    stop = own["stop_step"]
    lines = [
        code,
        "step:100/100 val_loss:1.00000 ",
        TRACK.RULER,
        "machine",
        TRACK.RULER,
        f"settings {json.dumps(own)}",
        "step:0/100 val_loss:10.82583 train_time:0.0s",
        f"step:{stop}/100 val_loss:{loss:.5f} train_time:1.0s",
        end if end is not None else f"finished at step {stop}",
    ]
    path = folder / f"{name}.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_logs_of_an_entry_are_read_and_judged(tmp_path: Path, capsys) -> None:
    new = [write_log(tmp_path, f"new{seed}", 3.277, seed=seed) for seed in range(4)]
    old = [write_log(tmp_path, f"old{seed}", 3.279, seed=seed, optimizer="muon") for seed in range(4)]
    assert TRACK.read_entry(new).losses == (3.277,) * 4
    assert TRACK.main([str(path) for path in new]) == 0
    assert TRACK.main([str(path) for path in old]) == 1
    assert TRACK.main([*map(str, new), "--against", *map(str, old)]) == 1  # 0.002 / √(1/2) is too little
    assert TRACK.main([*map(str, new), "--against", str(write_log(tmp_path, "worse", 3.283))]) == 0
    printed = capsys.readouterr().out
    assert "target 3.28: reached (0.00600" in printed
    assert "target 3.28: not reached (0.00200" in printed
    assert "the first is not shown to be better (0.00283" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 0}, "each seed once"),
        ({"seed": 1, "stop_step": 90}, "another stop_step"),
        ({"seed": 1, "lr": 2e-3}, "another lr"),
        ({"seed": 1, "code": "other"}, "2 versions of the code"),
        ({"seed": 1, "end": "paused after step 100"}, "not come to its stopping step 100"),
    ],
    ids=["seed twice", "another stop", "another rate", "other code", "unfinished"],
)
def test_logs_that_are_no_entry_are_refused(tmp_path: Path, capsys, changes, message: str) -> None:
    logs = [write_log(tmp_path, "first", 3.27), write_log(tmp_path, "second", 3.27, **changes)]
    assert TRACK.main([str(path) for path in logs]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"grad_scale": 8.0},
        {"steps": 200},
        {"stop_step": 90},
        {"optimizer": "muon"},
        {"lr": 2e-3},
        {"decay": 0.5},
        {"rest": "roles"},
        {"warmup": 10},
        {"cooldown": 0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_entries_that_differ_in_a_choice_are_described_differently(tmp_path: Path, changes) -> None:
    paths = [write_log(tmp_path, "first", 3.27), write_log(tmp_path, "second", 3.27, **changes)]
    first, second = (TRACK.describe(TRACK.read_entry([path])) for path in paths)
    assert first != second
    assert "over 1 seed" in first


def test_the_tiny_mode_is_not_compared_with_the_real_one(tmp_path: Path, capsys) -> None:
    tiny, real = write_log(tmp_path, "tiny", 2.0, tiny=True), write_log(tmp_path, "real", 3.27)
    assert TRACK.main([str(tiny), "--against", str(real)]) == 2
    assert "like with like" in capsys.readouterr().err
    TRACK.main([str(tiny)])
    assert "only shows how the tests work" in capsys.readouterr().out


DIFFERENT: dict[str, tuple[Any, str]] = {  # setting that the track fixes → another value, and what is said
    "data": ("data/other", "data 'fineweb10B' and 'other'"),
    "val_tokens": (1 << 20, "val_tokens 10485760 and 1048576"),
    "batch_sequences": (256, "batch_sequences 512 and 256"),
    "context": (512, "context 1024 and 512"),
    "vocabulary": (256, "vocabulary 50304 and 256"),
    "width": (64, "width 768 and 64"),
    "layers": (2, "layers 12 and 2"),
    "head_width": (32, "head_width 128 and 32"),
    "dtype": ("float32", "dtype 'bfloat16' and 'float32'"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_entries_that_differ_in_what_the_track_fixes_are_not_compared(
    tmp_path: Path, capsys, name: str
) -> None:
    value, message = DIFFERENT[name]
    new, old = write_log(tmp_path, "new", 3.27), write_log(tmp_path, "old", 3.28, **{name: value})
    assert TRACK.main([str(new), "--against", str(old)]) == 2
    assert f"differ in what the track fixes ({message})" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("no log")
    assert TRACK.main([str(tmp_path / "notes.txt")]) == 2
    assert TRACK.main([str(tmp_path / "missing.txt")]) == 2
    assert "has no settings" in capsys.readouterr().err


def test_the_same_data_in_another_folder_are_the_same(tmp_path: Path, capsys) -> None:
    new = write_log(tmp_path, "new", 3.27)
    old = write_log(tmp_path, "old", 3.28, data="/elsewhere/fineweb10B")
    TRACK.main([str(new), "--against", str(old)])
    assert "track fixes" not in capsys.readouterr().err
