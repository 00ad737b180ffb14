from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from celo2.evaluate.suite import store as run_store
from celo2.evaluate.suite.results import RunResult, RunSpec
from celo2.evaluate.suite.store import RunStore, load_results, pack, unpack
from helpers.run_results import make_random_run


def assert_same_run(found: RunResult, wanted: RunResult) -> None:
    for field in dataclasses.fields(RunResult):
        assert_array_equal(getattr(found, field.name), getattr(wanted, field.name), err_msg=field.name)


@pytest.mark.parametrize("accuracy", [True, False], ids=["accuracy", "no-accuracy"])
def test_a_run_comes_back_as_it_was(tmp_path: Path, accuracy: bool) -> None:
    run = make_random_run(accuracy=accuracy, seed=3)
    RunStore(tmp_path).add([run])
    [found] = load_results(tmp_path).results
    assert_same_run(found, run)


def test_non_finite_numbers_come_back(tmp_path: Path) -> None:
    curve = np.asarray([1.0, np.nan, np.inf], np.float32)
    run = dataclasses.replace(
        make_random_run(task="a-game"),
        train_loss=curve,
        train_steps=np.asarray([1, 2, 20]),
        seconds_per_step=np.nan,
        diverged_at=2,
    )
    RunStore(tmp_path).add([run])
    [found] = load_results(tmp_path).results
    assert_same_run(found, run)
    assert found.diverged


def test_specs_that_differ_in_anything_have_folders_of_their_own(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    base = make_random_run().spec
    changes = {
        "task": "a/task",
        "optimizer": "celo2:../x",
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "seed": 1,
        "steps": 30,
        "schedule": "constant",
    }
    assert set(changes) == {field.name for field in dataclasses.fields(RunSpec)}
    paths = [store.path(base), *(store.path(dataclasses.replace(base, **{k: v})) for k, v in changes.items())]
    assert len(set(paths)) == len(paths)
    assert all(path.parents[2] == tmp_path / "runs" for path in paths)


def test_a_finished_run_is_never_written_again(tmp_path: Path) -> None:
    store, run = RunStore(tmp_path), make_random_run()
    store.add([run])
    before = (store.path(run.spec) / "curve.npz").stat()
    store.add([dataclasses.replace(run, diverged_at=7)])
    assert (store.path(run.spec) / "curve.npz").stat().st_mtime_ns == before.st_mtime_ns
    assert store.load().results[0].diverged_at == -1


def _remove(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def _cut(run: Path) -> None:
    os.truncate(run / "curve.npz", 50)


def _edit(run: Path) -> None:
    text = (run / "spec.json").read_text()
    (run / "spec.json").write_text(text.replace('"diverged_at": -1', '"diverged_at": 5'))


def _other_schema(run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "schema": "celo2-run/99"}))


def _status(text: str) -> Callable[[Path], None]:
    return lambda run: (run / "status.json").write_text(text)  # type: ignore[return-value]


def _record(**changes: object) -> Callable[[Path], None]:
    """A record that another version has written: its checksums fit; None takes a field away."""

    def write(run: Path) -> None:
        record = {**json.loads((run / "spec.json").read_text()), **changes}
        text = json.dumps({name: value for name, value in record.items() if value is not None})
        (run / "spec.json").write_text(text)
        _fit_checksums(run)

    return write


def _spec(**changes: object) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        spec = json.loads((run / "spec.json").read_text())["spec"]
        _record(spec={**spec, **changes})(run)

    return write


def _curves(**arrays: np.ndarray) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        np.savez(run / "curve.npz", allow_pickle=True, **arrays)
        _fit_checksums(run)

    return write


def _fit_checksums(run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    for name in status["sha256"]:
        status["sha256"][name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    (run / "status.json").write_text(json.dumps(status))


def _a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("")


def _pickled(run: Path) -> None:
    _curves(train_steps=np.asarray([{}], object))(run)


ONE = np.ones(3, np.float32)
ODD = {
    "no JSON": (_status("{"), "found what is no JSON"),
    "null": (_status("null"), "expected a JSON object, found null"),
    "a list": (_status("[1]"), "expected a JSON object"),
    "deep": (_status("[" * 100_000), "found what is no JSON"),
    "no schema": (_status("{}"), "it has schema None"),
    "no checksums": (_status('{"schema": "celo2-run/1", "status": "finished"}'), "status.json lacks sha256"),
    "odd checksums": (
        _status('{"schema": "celo2-run/1", "status": "finished", "sha256": [1]}'),
        r"sha256 in status.json is [1]",
    ),
    "unknown status": (
        _status('{"schema": "celo2-run/1", "status": 1, "sha256": {}, "mood": 1}'),
        "status.json has unknown fields mood; another version",
    ),
    "no facts": (_record(facts=None), "a run's record lacks facts; another version"),
    "unknown field": (_record(mood="good"), "a run's record has unknown fields mood"),
    "text for a number": (_record(state_bytes="many"), "state_bytes='many'"),
    "odd environment": (_record(environment=[1]), "environment=[1]"),
    "unknown setting": (_spec(momentum=0.9), "a run's spec has unknown fields momentum"),
    "setting of another type": (_spec(seed="1"), "a run's spec has seed='1', expected a whole number"),
    "setting out of range": (_spec(learning_rate=-1.0), "learning_rate must be positive"),
    "facts of another kind": (_record(facts="few"), "a run's facts is 'few', expected an object"),
    "no curve": (_curves(train_steps=ONE), "has no curve train_loss"),
    "curves of two lengths": (
        _curves(train_steps=ONE, train_loss=ONE[:2], valid_steps=ONE, valid_loss=ONE),
        "train_loss of length 2",
    ),
    "curve of text": (
        _curves(train_steps=ONE, train_loss=np.asarray(["a"] * 3), valid_steps=ONE, valid_loss=ONE),
        "has no curve train_loss",
    ),
    "pickled curve": (_pickled, "Object arrays cannot be loaded"),
    "a file": (_a_file, "Not a directory"),
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("status.json"), "half-written: status.json is missing"),
        (_remove("curve.npz"), "half-written: curve.npz is missing"),
        (_cut, "curve.npz is damaged"),
        (_edit, "spec.json is damaged"),
        (_other_schema, "celo2-run/99"),
        *ODD.values(),
    ],
    ids=["no-status", "no-curve", "cut", "edited", "schema", *ODD],
)
def test_a_damaged_run_is_reported_and_can_be_repeated(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    store, run = RunStore(tmp_path), make_random_run()
    store.add([run, make_random_run(seed=1)])
    damage(store.path(run.spec))
    loaded = store.load()
    assert [result.spec.seed for result in loaded.results] == [1]
    [(path, reason)] = loaded.damaged.items()
    assert path == store.path(run.spec)
    assert message in reason
    assert not store.has(run.spec)
    store.add([run])
    assert store.has(run.spec)
    assert_same_run(store.load().results[0], run)


def test_a_run_of_an_earlier_version_is_damaged_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        scalars = {name: kind for name, kind in run_store._SCALARS.items() if name != "weights"}
        earlier.setattr(run_store, "_SCALARS", scalars)
        RunStore(tmp_path).add([make_random_run()])
        pack([make_random_run()], tmp_path / "old.npz")
    [reason] = RunStore(tmp_path).load().damaged.values()
    assert "lacks weights" in reason
    assert not RunStore(tmp_path).has(make_random_run().spec)
    with pytest.raises(ValueError, match="lacks weights"):
        unpack(tmp_path / "old.npz")


def test_runs_of_a_killed_process_get_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, runs = RunStore(tmp_path), [make_random_run(seed=seed) for seed in range(3)]

    def killed(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(run_store.os, "rename", killed)
    with pytest.raises(SystemExit):
        store.add(runs)
    monkeypatch.undo()
    again = RunStore(tmp_path)
    again.prepare()
    assert again.load() == ([], {})
    assert not list(tmp_path.glob("**/.partial-*"))
    again.add(runs)
    assert len(again.load().results) == 3


def test_packed_runs_come_back(tmp_path: Path) -> None:
    runs = [make_random_run(seed=seed, accuracy=bool(seed)) for seed in (2, 0, 1)]
    runs.append(make_random_run(task="a-game"))
    pack(runs, tmp_path / "runs.npz", max_points=1000)
    for found, wanted in zip(
        unpack(tmp_path / "runs.npz"), sorted(runs, key=lambda run: run.spec), strict=True
    ):
        assert_same_run(found, wanted)


def test_packing_thins_training_curves_and_keeps_their_end(tmp_path: Path) -> None:
    run = make_random_run()
    pack([run], tmp_path / "runs.npz", max_points=5)
    [found] = load_results(tmp_path / "runs.npz").results
    assert len(found.train_steps) == len(found.train_loss) == 5
    assert (found.train_steps[-1], found.final_train_loss) == (20, run.final_train_loss)
    assert_array_equal(found.valid_loss, run.valid_loss)


def test_the_same_runs_pack_to_the_same_bytes(tmp_path: Path) -> None:
    runs = [make_random_run(seed=seed) for seed in range(3)]
    pack(runs, tmp_path / "a.npz")
    pack(runs[::-1], tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_what_is_no_folder_of_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no runs: expected the --out folder"):
        load_results(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"PK no")
    with pytest.raises(ValueError, match="is not a file of packed runs"):
        load_results(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "head",
    ["null", '{"schema": "celo2-runs/1"}', '{"schema": "celo2-runs/1", "runs": [1]}', "{", "[" * 100_000],
    ids=["null", "no-runs", "odd-run", "torn", "deep"],
)
def test_odd_packed_runs_are_named(tmp_path: Path, head: str) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("runs.json", head)
        with archive.open("curves.npy", "w") as stream:
            np.save(stream, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=rf"{path}"):
        load_results(path)
