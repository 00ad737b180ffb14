"""Options of running a recipe, and their file.

OUT/options.json    length, checkpoints, loggers, probes; defaults for a resumed run, which may change them
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from tyro.conf import Suppress

from celo2._utils.checks import check_count
from celo2._utils.files import read_object, write_atomic
from celo2.meta.parsing import check_kind
from celo2.meta.probe import ProbeConfig
from celo2.meta.run.errors import writing
from celo2.meta.run.loggers import LoggerName

OPTIONS_FILE = "options.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of running and observing a recipe; none of them changes the result.

    Attributes:
        out: Folder of the run: recipe, metrics, checkpoints, weights.
        outer_steps: Total number of outer iterations; a resumed run continues up to it.
        resume: Continue the run in OUT from its last checkpoint; the command line takes the recipe and the
            options from there.
        checkpoint_every: Outer iterations between checkpoints.
        max_skipped: Share of the last SKIP_WINDOW meta-gradients that may be skipped because they are not
            finite, in [0, 1]; one more ends the run with an error.
        skip_window: Number of outer iterations over which skipped ones are counted.
        sinks: Loggers that receive the metrics in addition to OUT/metrics.jsonl; needs celo2[watch].
        probe_every: Outer iterations between probes, which choose OUT/best.safetensors; 0: never.
        probe: The tasks and seeds of a probe.
        machine_words: Command-line words that resuming on this machine needs besides --resume and --out.
    """

    out: Path
    outer_steps: int = 3600
    resume: bool = False
    checkpoint_every: int = 200
    max_skipped: float = 0.05
    skip_window: int = 200
    sinks: tuple[LoggerName, ...] = ()
    probe_every: int = 0
    probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
    machine_words: Suppress[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Checks every range."""
        for name in ("outer_steps", "checkpoint_every", "skip_window"):
            check_count(name, getattr(self, name), 1)
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"max_skipped is a share in [0, 1], got {self.max_skipped}.")
        if self.probe_every < 0:
            raise ValueError(f"probe_every must not be negative, got {self.probe_every}; 0 is never.")


_NOT_KEPT = ("out", "resume", "machine_words")  # set by every call


def write_options(folder: Path, options: TrainOptions) -> None:
    """Writes the options of a run into its folder, for resuming it.

    Raises:
        RunWriteError: They cannot be written.
    """
    plain = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_KEPT}
    with writing(folder / OPTIONS_FILE):
        write_atomic(folder / OPTIONS_FILE, f"{json.dumps(plain, indent=2)}\n".encode())


def read_options(folder: Path) -> dict[str, Any]:
    """Reads the options of a run's last call, by their names in `TrainOptions`; `probe` is a dict.

    Options of another version are left out; a run from before this file was introduced has none.

    Raises:
        ValueError: The file is damaged; the message says what to do.
    """
    path = folder / OPTIONS_FILE
    try:
        saved = read_object(path) if path.exists() else {}
        probe = saved.pop("probe", {})
        if not isinstance(probe, dict):
            raise ValueError(f"{path}: probe must be an object, got {json.dumps(probe):.60}.")
        options = _read_fields(path, saved, TrainOptions)
        return {**options, "probe": _read_fields(path, probe, ProbeConfig)} if probe else options
    except ValueError as error:
        raise ValueError(f"{error} Remove the file, and give the options that it held again.") from error


def _read_fields(path: Path, values: dict[str, Any], cls: type) -> dict[str, Any]:
    kinds = get_type_hints(cls)
    known = {name: value for name, value in values.items() if name in kinds and name not in _NOT_KEPT}
    for name, value in known.items():
        try:
            check_kind(name, value, kinds[name])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
