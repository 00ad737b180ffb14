"""Loggers of a run's metrics beside its JSON lines: TensorBoard, Weights & Biases.

A logger accepts records, flat or nested, each with its `step`. The run's JSON lines are written first and
are complete, so the failure of a logger is only reported once and the run continues.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from celo2._utils.extras import require
from celo2._utils.files import read_object, write_atomic
from celo2.config import nearest_name

Records = Sequence[Mapping[str, Any]]
LoggerName = Literal["tensorboard", "wandb"]


class Logger(Protocol):
    """Interface of a logger."""

    def write(self, records: Records) -> None:
        """Adds records; each has a `step`, and a run's steps do not decrease."""
        ...

    def close(self) -> None:
        """Flushes buffered records and closes the logger."""
        ...


class TensorBoard:
    """Writes event files to OUT/tensorboard, without TensorFlow.

    Args:
        folder: Folder of the run.
        first: Number of iterations already done; TensorBoard discards later points from before a resumption.
        recipe: The run's recipe, shown as text.
    """

    def __init__(self, folder: Path, first: int, recipe: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer = SummaryWriter(
            logdir=str(folder / "tensorboard"),
            purge_step=first + 1 if first else None,
            filename_suffix=f".{first}",  # the rest of the name is the time in seconds
        )
        if not first:
            self._writer.add_text("recipe", f"```\n{json.dumps(dict(recipe), indent=2)}\n```", 0)

    def write(self, records: Records) -> None:
        """Writes one scalar per number."""
        for record in records:
            for name, value in flatten(record):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


class WeightsAndBiases:
    """Logs to a run of Weights & Biases; OUT/wandb.json holds its id, so that a resumed run continues it.

    Project, mode and host are Weights & Biases' own settings: WANDB_PROJECT (default "celo2"),
    WANDB_MODE=offline, `wandb login`.

    Args:
        folder: Folder of the run; its name becomes the run's.
        first: Number of iterations already done.
        recipe: The config shown with the run.
    """

    def __init__(self, folder: Path, first: int, recipe: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        note = folder / "wandb.json"
        known = read_object(note) if first and note.exists() else {}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "celo2",
            name=folder.name,
            dir=str(folder),
            config=dict(recipe),
            id=known.get("id"),
            resume="allow" if known else None,
        )
        write_atomic(note, (json.dumps({"id": self._run.id}) + "\n").encode())

    def write(self, records: Records) -> None:
        """Logs one row per record, except steps that the server already has from before a resumption."""
        for record in records:
            if record["step"] >= self._run.step:
                self._run.log(dict(flatten(record)), step=record["step"])

    def close(self) -> None:
        """Waits for the upload to finish."""
        self._run.finish()


LOGGERS: Mapping[str, tuple[str, Callable[[Path, int, Mapping[str, Any]], Logger]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
}
"""The available loggers by name: the package that each needs and its class."""


def check_loggers(names: Iterable[str]) -> None:
    """Checks, before anything is written, that these loggers exist and their packages are installed.

    Raises:
        ValueError: No logger has this name.
        ImportError: A package is missing; the message names the extra that installs it.
    """
    for name in names:
        if name not in LOGGERS:
            raise ValueError(
                f"sinks: unknown logger {name!r}{nearest_name(name, LOGGERS)} There are {', '.join(LOGGERS)}."
            )
        require("watch", LOGGERS[name][0])


def open_loggers(names: Iterable[str], folder: Path, *, first: int, recipe: Mapping[str, Any]) -> Loggers:
    """Opens loggers for a run that has done `first` iterations.

    Raises:
        OSError: A logger cannot be opened, for example without a login.
    """
    opened: dict[str, Logger] = {}
    for name in names:
        try:
            opened[name] = LOGGERS[name][1](folder, first, recipe)
        except Exception as error:  # clients of services may raise anything
            Loggers(opened).close()
            raise OSError(
                f"{name} could not be opened ({type(error).__name__}: {error}); remedy it, or leave it out "
                f"of --sinks, and go on with --resume: {folder} has been begun."
            ) from error
    return Loggers(opened)


class Loggers:
    """Combines several loggers into one that never raises; the first error of each is printed.

    Args:
        loggers: The loggers by name.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = dict(loggers)
        self._failed: set[str] = set()

    def write(self, records: Records) -> None:
        """Passes the records to every logger, including those that failed before: a network may recover."""
        for name, logger in self._loggers.items():
            self._try(name, lambda logger=logger: logger.write(records))

    def close(self) -> None:
        """Closes every logger."""
        for name, logger in self._loggers.items():
            self._try(name, logger.close)

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # clients of services may raise anything
            if name not in self._failed:
                print(
                    f"warning: {name} failed ({type(error).__name__}: {error}); the run goes on, further "
                    "failures are not shown, and metrics.jsonl has everything.",
                    file=sys.stderr,
                )
            self._failed.add(name)


def flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers in a record, with names joined by "/"; `step`, text, lists and null are left out.

    Example:
        >>> list(flatten({"step": 3, "loss": {"digits": 1.5, "mnist": None}, "skipped": 0}))
        [('loss/digits', 1.5), ('skipped', 0.0)]
    """
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and (prefix or name != "step"):
            yield prefix + name, float(value)
