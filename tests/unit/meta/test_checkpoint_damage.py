"""What a resumed run makes of damaged files: each damage with its outcome. No iteration is computed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from celo2.commands import meta_train as command
from celo2.meta.run.checksums import CHECKSUMS

EVERY, STEPS = 10, 30
WORDS = ["--datasets", "digits", "--checkpoint-every", str(EVERY), "--devices", "1"]


@pytest.fixture
def run(instant_outer, tmp_path: Path) -> Path:
    """The folder of a finished run with three checkpoints."""
    out = tmp_path / "run"
    assert _train(out, STEPS) == 0
    return out


def _train(out: Path, steps: int, *words: str) -> int:
    return command.main([*WORDS, "--out", str(out), "--outer-steps", str(steps), *words])


def _steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def _checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def _newest(out: Path) -> Path:
    return out / "checkpoints" / str(STEPS)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _cut(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file() and file.name != CHECKSUMS:
            os.truncate(file, file.stat().st_size // 2)


def _without_part(folder: Path) -> None:
    shutil.rmtree(folder / "default")


def _without_checksums(folder: Path) -> None:
    (folder / CHECKSUMS).unlink()


def _cut_without_checksums(folder: Path) -> None:
    _cut(folder)
    _without_checksums(folder)


def _odd_checksums(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / CHECKSUMS).write_text(text)

    return write


DAMAGES = {
    "empty": (_empty, "it is empty"),
    "cut": (_cut, "is not as it was written"),
    "a part gone": (_without_part, "is not as it was written"),
    "no checksums": (_without_checksums, "it has no checksums.json"),
    "cut, no checksums": (_cut_without_checksums, "it has no checksums.json"),
    "checksums: null": (_odd_checksums("null"), "checksums.json: expected a JSON object, found null"),
    "checksums: a list": (_odd_checksums("[1]"), "checksums.json: expected a JSON object"),
    "checksums: nothing": (_odd_checksums("{}"), "checksums.json names no file"),
    "checksums: no text": (_odd_checksums('{"_METADATA": 3}'), "_METADATA is not as it was written"),
    "checksums: binary": (_odd_checksums("\0"), "found what is no JSON"),
    "checksums: deep": (_odd_checksums("[" * 100_000), "found what is no JSON"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run: Path, capsys, damage, message) -> None:
    damage(_newest(run))
    capsys.readouterr()
    assert _train(run, STEPS + EVERY, "--resume") == 0
    printed = capsys.readouterr().out
    assert f"checkpoint {STEPS} is not readable" in printed
    assert message in printed
    assert f"iterations {STEPS - EVERY + 1} to {STEPS + EVERY}" in printed
    assert _steps(run) == list(range(1, STEPS + EVERY + 1))
    assert _checkpoints(run) == [str(step) for step in (STEPS - EVERY, STEPS, STEPS + EVERY)]


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_of_every_checkpoint_stops_the_run_and_removes_nothing(
    run: Path, capsys, damage, message
) -> None:
    for folder in (run / "checkpoints").iterdir():
        damage(folder)
    before = _checkpoints(run)
    status = _train(run, STEPS + EVERY, "--resume")
    printed = capsys.readouterr()
    if damage is _without_checksums:  # whole, and nothing else to go by
        assert status == 0
        assert f"checkpoint {STEPS} is taken, though it has no checksums.json" in printed.out
        return
    assert status == 2
    assert f"no checkpoint of {run} can be read" in printed.err
    assert "nothing was removed" in printed.err
    assert _checkpoints(run) == before
    assert len(_steps(run)) == STEPS


def test_checkpoints_that_are_gone_are_not_taken_for_a_young_run(run: Path, capsys) -> None:
    shutil.rmtree(run / "checkpoints")
    assert _train(run, STEPS + EVERY, "--resume") == 2
    assert "has no checkpoint, though there was one" in capsys.readouterr().err
    assert len(_steps(run)) == STEPS


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "weights")
    assert _train(run, STEPS, "--resume") == 0
    assert _steps(run) == list(range(1, STEPS + 1))


def test_other_names_among_the_checkpoints_are_left_alone(run: Path) -> None:
    (run / "checkpoints" / "notes").mkdir()
    (run / "checkpoints" / "40.orbax-checkpoint-tmp-1").mkdir()
    (run / "checkpoints" / "50").write_text("a file")
    assert _train(run, STEPS + EVERY, "--resume") == 0
    assert {"notes", "50"} < set(_checkpoints(run))


ODD_LINES = {
    "not JSON": "x",
    "null": "null",
    "a list": "[1, 2]",
    "no step": '{"meta_loss": 1.0, "skipped": 0}',
    "a step of text": '{"step": "4", "meta_loss": 1.0, "skipped": 0}',
    "a step of zero": '{"step": 0, "meta_loss": 1.0, "skipped": 0}',
    "a loss of text": '{"step": 4, "meta_loss": "low", "skipped": 0}',
    "losses in a list": '{"step": 4, "meta_loss": 1.0, "skipped": 0, "loss_per_task": [1]}',
    "nothing skipped": '{"step": 4, "meta_loss": 1.0, "skipped": null}',
    "binary": "\0\1\ufffd",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_an_odd_line_of_metrics_is_named_and_the_run_goes_on(run: Path, capsys, line: str) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], line, *lines[4:]]) + "\n")
    capsys.readouterr()
    assert _train(run, STEPS + EVERY, "--resume") == 0
    printed = capsys.readouterr().out
    assert f"{path}: 1 line(s) are no records of iterations and are left out: 4." in printed
    assert f"{path} has lost 1 of the iterations up to {STEPS}" in printed
    assert _steps(run) == [step for step in range(1, STEPS + EVERY + 1) if step != 4]


def test_iterations_that_are_there_twice_are_noticed(run: Path, capsys) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, *lines[4:7]]))
    assert _train(run, STEPS, "--resume") == 0
    assert f"{path}: 3 line(s) repeat an iteration" in capsys.readouterr().out
    assert _steps(run) == list(range(1, STEPS + 1))


ODD_RECIPES = {
    "not JSON": ("{", "found what is no JSON"),
    "null": ("null", "expected a JSON object, found null"),
    "a list": ("[]", "expected a JSON object"),
    "of text": ('{"sigma": "small"}', "sigma must be a number"),
    "unknown": ('{"sigme": 1}', "did you mean 'sigma'"),
    "deep": ("[" * 100_000, "found what is no JSON"),
    "out of range": ('{"sigma": -1}', "sigma must be positive"),
}


@pytest.mark.parametrize(("text", "message"), ODD_RECIPES.values(), ids=ODD_RECIPES)
def test_an_odd_recipe_is_named_with_what_to_do(run: Path, capsys, text: str, message: str) -> None:
    (run / "config.json").write_text(text)
    assert _train(run, STEPS + EVERY, "--resume") == 2
    printed = capsys.readouterr().err
    assert str(run / "config.json") in printed
    assert message in printed
    assert "begin with another --out" in printed
    assert len(_steps(run)) == STEPS


ODD_PROBES = {
    "not JSON": "x",
    "null": "null",
    "no tasks": '{"step": 0, "score": 0.0}',
    "tasks in a list": '{"step": 0, "score": 0.0, "tasks": [1]}',
    "a score of text": '{"step": 0, "score": "good", "tasks": {}}',
    "weights elsewhere": '{"step": 0, "score": 0.0, "tasks": {}, "weights": "../../x.safetensors"}',
}


@pytest.mark.parametrize("line", ODD_PROBES.values(), ids=ODD_PROBES)
def test_an_odd_probe_is_named_with_what_to_do(run: Path, capsys, line: str) -> None:
    (run / "probes.jsonl").write_text(f"{line}\n")
    assert _train(run, STEPS + EVERY, "--resume") == 2
    printed = capsys.readouterr().err
    assert f"{run / 'probes.jsonl'}: line 1 is not the record of a probe" in printed
    assert "remove these lines" in printed


def test_what_a_killed_process_was_writing_is_removed(run: Path) -> None:
    process = 2**22 + 1  # more than any process's number on Linux
    left = [
        run / f".metrics.jsonl.{process}.partial",
        run / "weights" / f".celo2-000030.safetensors.{process}.partial",
        _newest(run) / f".checksums.json.{process}.partial",
    ]
    own = run / f".best.safetensors.{os.getpid()}.partial"
    for path in (*left, own):
        path.touch()
    assert _train(run, STEPS + EVERY, "--resume") == 0
    assert not any(path.exists() for path in left)
    assert own.exists()
