"""Loggers: what reaches TensorBoard and Weights & Biases, and what happens without them."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import types
from pathlib import Path

import pytest

from celo2.meta.run.loggers import Loggers, check_loggers, flatten, open_loggers

RECORDS = [
    {"step": 1, "meta_loss": 2.0, "loss_per_task": {"mlp/digits": 2.5, "mlp/mnist": None}, "skipped": 0},
    {"step": 2, "meta_loss": None, "loss_per_task": {"mlp/digits": 1.5, "mlp/mnist": 1.25}, "skipped": 1},
]


class FakeRun:
    """In place of a run of Weights & Biases; the server has seen the steps below `step`."""

    def __init__(self, step: int, options: dict) -> None:
        self.id, self.step, self.options = options["id"] or "new-id", step, options
        self.rows: list[tuple[int, dict]] = []
        self.finished = False

    def log(self, row: dict, step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that collects the runs it was asked for."""
    module = types.ModuleType("wandb")
    module.runs, module.step = [], 0  # type: ignore[attr-defined]

    def init(**options) -> FakeRun:
        module.runs.append(FakeRun(module.step, options))  # type: ignore[attr-defined]
        return module.runs[-1]  # type: ignore[attr-defined]

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


class Broken:
    """A logger whose network is down at first."""

    def __init__(self, failures: int) -> None:
        self.failures, self.seen = failures, []

    def write(self, records) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to host")
        self.seen += records

    def close(self) -> None:
        raise RuntimeError("cannot close")


def test_flatten_joins_names_and_leaves_out_what_is_no_number() -> None:
    record = {"step": 3, "a": {"b": {"c": 1}}, "text": "x", "none": None, "list": [1.0]}
    assert list(flatten(record)) == [("a/b/c", 1.0)]


def test_no_sink_is_named_like_that() -> None:
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        check_loggers(["tensorbord"])


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_missing_package_names_the_extra(monkeypatch, name: str, package: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == package else found(wanted)
    )
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'celo2\[watch\]'"):
        check_loggers([name])


def test_failing_sink_is_reported_once_and_tried_again(capsys) -> None:
    broken, sound = Broken(failures=2), Broken(failures=0)
    loggers = Loggers({"broken": broken, "sound": sound})
    for record in ({"step": 1}, {"step": 2}, {"step": 3}):
        loggers.write([record])
    loggers.close()
    assert broken.seen == [{"step": 3}]
    assert [record["step"] for record in sound.seen] == [1, 2, 3]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2  # one of each, the second logger's when it was closed
    assert "broken failed (ConnectionError: no route to host)" in warnings[0]
    assert "sound failed (RuntimeError: cannot close)" in warnings[1]


def test_wandb_gets_a_row_for_each_record(wandb, tmp_path: Path) -> None:
    loggers = open_loggers(["wandb"], tmp_path, first=0, recipe={"sigma": 0.01})
    loggers.write(RECORDS)
    loggers.close()
    (run,) = wandb.runs
    assert run.options["config"] == {"sigma": 0.01}
    assert (run.options["project"], run.options["resume"]) == ("celo2", None)
    assert run.rows[0] == (1, {"meta_loss": 2.0, "loss_per_task/mlp/digits": 2.5, "skipped": 0.0})
    assert [step for step, _ in run.rows] == [1, 2]
    assert run.finished


def test_resumed_wandb_run_is_continued_where_the_server_is(wandb, tmp_path: Path) -> None:
    open_loggers(["wandb"], tmp_path, first=0, recipe={})
    wandb.step = 2  # what a killed run had sent before its last checkpoint is computed again
    loggers = open_loggers(["wandb"], tmp_path, first=1, recipe={})
    loggers.write([*RECORDS, {"step": 3, "meta_loss": 1.0}])
    first, second = wandb.runs
    assert (second.id, second.options["resume"]) == (first.id, "allow")
    assert [step for step, _ in second.rows] == [2, 3]


def test_new_wandb_run_in_an_old_folder_is_another(wandb, tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text(json.dumps({"id": "old"}))
    open_loggers(["wandb"], tmp_path, first=0, recipe={})
    assert wandb.runs[0].options["id"] is None


def test_sink_that_cannot_be_opened_is_an_error(wandb, tmp_path: Path, monkeypatch) -> None:
    def refuse(**options) -> None:
        raise RuntimeError("nobody is logged in")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(OSError, match=r"wandb could not be opened \(RuntimeError: nobody is logged in\)"):
        open_loggers(["wandb"], tmp_path, first=0, recipe={})


def _read_events(folder: Path) -> list:
    """The events of all files, in the order of their writing: length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import (
        Event,  # pyright: ignore[reportAttributeAccessIssue]  # made when it is imported
    )

    events = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return events


def test_tensorboard_files_hold_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the watch extra is not installed")
    loggers = open_loggers(["tensorboard"], tmp_path, first=0, recipe={"sigma": 0.01})
    loggers.write(RECORDS)
    loggers.close()
    again = open_loggers(["tensorboard"], tmp_path, first=1, recipe={})
    again.write(RECORDS[1:])
    again.close()
    events = _read_events(tmp_path / "tensorboard")
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
        if value.tag.startswith("loss_per_task")
    ]
    first = (1, "loss_per_task/mlp/digits", 2.5)
    second = [(2, "loss_per_task/mlp/digits", 1.5), (2, "loss_per_task/mlp/mnist", 1.25)]
    assert scalars == [first, *second, *second]
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [2]  # from this step on TensorBoard forgets the first file
