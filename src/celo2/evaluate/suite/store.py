"""Storage of a suite's runs: one folder per run, written atomically and never changed.

    OUT/runs/TASK/OPTIMIZER/lr-0.001_wd-0_seed-0_KEY/
        spec.json     settings, facts about the task, software and machine
        curve.npz     the curves
        status.json   "finished" and the checksums of the other two; written last

A run's folder is written under a temporary name and renamed when complete, so that a killed process leaves
no partial folder under the final name. A folder that does not match its checksums is ignored, and its run is
repeated. `pack` writes many runs into one small file, suitable for a repository.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from celo2._utils.files import parse_object, remove_partial_files, write_atomic
from celo2.evaluate.suite.records import check_fields, from_record
from celo2.evaluate.suite.results import RunResult, RunSpec, TaskFacts

SCHEMA = "celo2-run/1"
PACK_SCHEMA = "celo2-runs/1"
SPEC, CURVE, STATUS = "spec.json", "curve.npz", "status.json"
CURVES = ("train_steps", "train_loss", "valid_steps", "valid_loss", "valid_accuracy")
UNREADABLE = (  # errors caused by damaged data and by records of another version
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    ValueError,
)
MAX_NAME = 128  # bytes; file systems allow 255, and temporary names are longer
PACK_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same runs give the same file


class Loaded(NamedTuple):
    """Content of a folder: its finished runs in order, and why others could not be read."""

    results: list[RunResult]
    damaged: dict[Path, str]


class RunStore:
    """Folder of a suite's runs; only one process may write at a time, while others may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs = folder / "runs"

    def prepare(self) -> None:
        """Creates the folder if needed, and removes partial runs of killed processes."""
        self._runs.mkdir(parents=True, exist_ok=True)
        for left in self._runs.glob("*/*/.partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        remove_partial_files(self.folder)

    def path(self, spec: RunSpec) -> Path:
        """Returns the folder of a run."""
        numbers = f"lr-{spec.learning_rate:g}_wd-{spec.weight_decay:g}_seed-{spec.seed}"
        return self._runs / _file_name(spec.task) / _file_name(spec.optimizer) / f"{numbers}_{spec.key}"

    def has(self, spec: RunSpec) -> bool:
        """Returns whether the run is stored, complete and undamaged."""
        try:
            return _read(self.path(spec)).spec == spec
        except (OSError, ValueError):
            return False

    def add(self, results: Sequence[RunResult]) -> None:
        """Writes runs that are not stored yet; damaged ones are replaced.

        All runs are written before the first is renamed, so that a killed process nearly always leaves either
        all runs that were trained together or none.
        """
        partials: dict[Path, Path] = {}
        for result in results:
            path = self.path(result.spec)
            if not self.has(result.spec):
                partials[_write_partial(path, result)] = path
        for partial, path in partials.items():
            _remove(path)  # a damaged run
            os.rename(partial, path)

    def load(self) -> Loaded:
        """Loads every run of the folder."""
        results: list[RunResult] = []
        damaged: dict[Path, str] = {}
        for path in sorted(self._runs.glob("*/*/lr-*")):
            try:
                results.append(_read(path))
            except (OSError, ValueError) as error:
                damaged[path] = str(error)
        return Loaded(sorted(results, key=lambda result: result.spec), damaged)


def _remove(path: Path) -> None:
    """Removes the file or folder at a run's path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_partial(path: Path, result: RunResult) -> Path:
    """Writes a run to a temporary folder beside its path."""
    partial = path.with_name(f".partial-{path.name}")
    partial.mkdir(parents=True, exist_ok=True)
    files = {SPEC: _spec_bytes(result), CURVE: _curve_bytes(result)}
    hashes = {name: _hash(content) for name, content in files.items()}
    files[STATUS] = _json_bytes({"schema": SCHEMA, "status": "finished", "sha256": hashes})
    for name, content in files.items():
        write_atomic(partial / name, content)
    return partial


def load_results(place: Path) -> Loaded:
    """Loads the runs from a suite's folder or a file written by `pack`.

    Raises:
        FileNotFoundError: The path is neither.
        ValueError: The file is damaged or has another schema.
    """
    if place.is_file():
        return Loaded(unpack(place), {})
    if not (place / "runs").is_dir():
        raise FileNotFoundError(
            f"{place} has no runs: expected the --out folder of celo2 evaluate or compare."
        )
    return RunStore(place).load()


def pack(results: Sequence[RunResult], path: Path, *, max_points: int = 60) -> None:
    """Writes runs into one file: their settings as JSON, and their curves stacked, in float32.

    Args:
        results: The runs.
        path: The file; its name must end in `.npz`.
        max_points: The maximum number of points to keep of a training curve, including the last.
    """
    ordered = sorted(results, key=lambda result: result.spec)
    environments = _unique(result.environment for result in ordered)
    facts = _unique(dataclasses.asdict(result.facts) for result in ordered)
    records = []
    curves: list[np.ndarray] = []
    for result in ordered:
        record = _scalars(result)
        record |= {"environment": environments.index(dict(result.environment))}
        record |= {"facts": facts.index(dataclasses.asdict(result.facts))}
        kept = np.unique(np.linspace(0, len(result.train_steps) - 1, max_points).round().astype(int))
        arrays = _arrays(result)
        arrays |= {name: arrays[name][kept] for name in ("train_steps", "train_loss")}
        record["lengths"] = {name: len(array) for name, array in arrays.items()}
        curves += arrays.values()
        records.append(record)
    head = {"schema": PACK_SCHEMA, "environments": environments, "facts": facts, "runs": records}
    flat = np.concatenate([np.zeros(0), *curves]).astype(np.float32)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in (
            ("runs.json", _json_bytes(head, indent=None)),
            ("curves.npy", _npy_bytes(flat)),
        ):
            archive.writestr(zipfile.ZipInfo(name, PACK_DATE), content, zipfile.ZIP_DEFLATED, 9)


def unpack(path: Path) -> list[RunResult]:
    """Loads the runs from a file written by `pack`.

    Raises:
        ValueError: The file is damaged, or has another schema.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            head = parse_object(archive.read("runs.json"))
            flat = np.load(io.BytesIO(archive.read("curves.npy")), allow_pickle=False)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a file of packed runs, or is damaged: {error}") from error
    if head.get("schema") != PACK_SCHEMA:
        raise ValueError(f"{path} has schema {head.get('schema')!r:.40}, expected {PACK_SCHEMA!r}.")
    try:
        return _unpack(head, flat)
    except UNREADABLE as error:
        raise ValueError(f"{path}: {error}") from error


def _unpack(head: dict[str, Any], flat: np.ndarray) -> list[RunResult]:
    results, at = [], 0
    for record in head["runs"]:
        arrays = {}
        for name, length in record.pop("lengths").items():
            arrays[name] = flat[at : at + length].astype(np.int64 if name.endswith("steps") else np.float32)
            at += length
        record |= {"environment": head["environments"][record["environment"]]}
        record |= {"facts": head["facts"][record["facts"]]}
        results.append(_result(record, arrays))
    return results


def _read(path: Path) -> RunResult:
    """Reads a run's folder.

    Raises:
        ValueError: The folder is incomplete, damaged, or has another schema.
    """
    try:
        contents = {name: (path / name).read_bytes() for name in (STATUS, SPEC, CURVE)}
    except FileNotFoundError as error:
        raise ValueError(f"{path} is half-written: {Path(error.filename).name} is missing.") from error
    try:
        status = parse_object(contents[STATUS])
        if status.get("schema") != SCHEMA:
            raise ValueError(f"it has schema {status.get('schema')!r:.40}, expected {SCHEMA!r}.")
        check_fields(status, {"schema", "status", "sha256"}, STATUS)
        check_fields(status["sha256"], {SPEC, CURVE}, f"sha256 in {STATUS}")
        for name in (SPEC, CURVE):
            if status["sha256"][name] != _hash(contents[name]):
                raise ValueError(f"{name} is damaged: it is not what {STATUS} says.")
        record = parse_object(contents[SPEC])
        with np.load(io.BytesIO(contents[CURVE]), allow_pickle=False) as curve:
            result = _result({name: value for name, value in record.items() if name != "schema"}, dict(curve))
    except UNREADABLE as error:
        raise ValueError(f"{path}: {error}") from error
    return result


def _result(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> RunResult:
    """Builds a run from its JSON record and curves.

    Raises:
        ValueError: The record does not have this version's format.
    """
    check_fields(record, {"spec", "facts", "environment", *_SCALARS}, "a run's record")
    fields = {name: record[name] for name in _SCALARS}
    if fields["seconds_per_step"] is None:
        fields["seconds_per_step"] = math.nan
    for name, kind in _SCALARS.items():
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise ValueError(f"a run's record has {name}={fields[name]!r:.40}, which has another type.")
    environment = record["environment"]
    if not isinstance(environment, dict) or not all(isinstance(text, str) for text in environment.values()):
        raise ValueError(f"a run's record has environment={environment!r:.40}, expected texts by name.")
    spec = from_record(RunSpec, record["spec"], "a run's spec")
    facts = from_record(TaskFacts, record["facts"], "a run's facts")
    return RunResult(spec=spec, facts=facts, environment=environment, **fields, **_curves(arrays))  # type: ignore[arg-type]


def _curves(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | None]:
    """Returns the curves after checking them; each must be as long as its steps.

    Raises:
        ValueError: A curve is missing or empty, or has another length or kind of numbers.
    """
    curves = {name: arrays.get(name) for name in CURVES}
    for name, array in curves.items():
        steps = curves["train_steps" if name.startswith("train") else "valid_steps"]
        if array is None and name == "valid_accuracy":
            continue
        if array is None or steps is None or array.dtype.kind not in "fiu" or array.ndim != 1:
            raise ValueError(f"{CURVE} has no curve {name}.")
        if len(array) == 0 or len(array) != len(steps):
            raise ValueError(
                f"{CURVE} has {name} of length {len(array)}, expected that of its steps, from 1 on."
            )
    return curves


_SCALARS: dict[str, type | tuple[type, ...]] = {
    "diverged_at": int,
    "seconds_per_step": (int, float),
    "timing": str,
    "state_bytes": int,
    "weights": str,
    "created": str,
}


def _scalars(result: RunResult) -> dict[str, Any]:
    """Returns the fields of a run without its curves, facts and environment."""
    scalars = {name: getattr(result, name) for name in _SCALARS}
    if math.isnan(result.seconds_per_step):
        scalars["seconds_per_step"] = None
    return {"spec": dataclasses.asdict(result.spec), **scalars}


def _arrays(result: RunResult) -> dict[str, np.ndarray]:
    """Returns the run's curves."""
    return {name: getattr(result, name) for name in CURVES if getattr(result, name) is not None}


def _spec_bytes(result: RunResult) -> bytes:
    facts, environment = dataclasses.asdict(result.facts), dict(result.environment)
    return _json_bytes({"schema": SCHEMA, **_scalars(result), "facts": facts, "environment": environment})


def _curve_bytes(result: RunResult) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **_arrays(result))
    return stream.getvalue()


def _npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _json_bytes(value: Any, indent: int | None = 1) -> bytes:
    return f"{json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)}\n".encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _unique(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in map(dict, values):
        if value not in found:
            found.append(value)
    return found


def _file_name(name: str) -> str:
    """Converts to a name that is safe for file systems and shells, at most `MAX_NAME` bytes long."""
    safe = re.sub(r"[^\w@.+-]", "_", name)
    if len(safe.encode()) <= MAX_NAME:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{safe.encode()[: MAX_NAME - 17].decode(errors='ignore')}_{digest}"
