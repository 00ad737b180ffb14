"""Where a run's numbers go beside its JSON lines: TensorBoard, Weights & Biases.

A sink takes records, flat or nested, each with its `step`. The JSON lines of the run are written first
and have everything; a sink that fails is therefore reported once, and the run goes on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from celo2._utils.extras import require
from celo2._utils.files import read_object, write_atomic
from celo2.config import nearest_name

Records = Sequence[Mapping[str, Any]]


class Sink(Protocol):
    """Takes what a run reports."""

    def write(self, records: Records) -> None:
        """Adds records; each has a `step`, and the steps of a run do not fall."""
        ...

    def close(self) -> None:
        """Hands over what is still held back."""
        ...


class TensorBoard:
    """Event files in OUT/tensorboard, written without TensorFlow.

    Args:
        folder: Of the run.
        first: Iterations already done. TensorBoard forgets what an earlier part of the run wrote beyond.
        recipe: Shown as a text.
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
        """One scalar for each number."""
        for record in records:
            for name, value in flatten(record):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Writes what is held back."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, which OUT/wandb.json names so that a resumed one continues it.

    Project, mode and host are Weights & Biases' own settings: WANDB_PROJECT (default "celo2"),
    WANDB_MODE=offline, `wandb login`.

    Args:
        folder: Of the run; its name is the run's.
        first: Iterations already done.
        recipe: The run's config.
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
        """One row for each record; what the server already has from before a resumption is not sent again."""
        for record in records:
            if record["step"] >= self._run.step:
                self._run.log(dict(flatten(record)), step=record["step"])

    def close(self) -> None:
        """Waits for the upload."""
        self._run.finish()


SINKS: Mapping[str, tuple[str, Callable[[Path, int, Mapping[str, Any]], Sink]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
}
"""The optional sinks by name: the package that each needs, and what opens it."""


def check_sinks(names: Iterable[str]) -> None:
    """Finds out, before anything is written, whether these sinks can be had.

    Raises:
        ValueError: No sink has this name.
        ImportError: A package is missing; the message names the extra that brings it.
    """
    for name in names:
        if name not in SINKS:
            raise ValueError(
                f"unknown sink {name!r}{nearest_name(name, SINKS)} There are {', '.join(SINKS)}."
            )
        require("watch", SINKS[name][0])


def open_sinks(names: Iterable[str], folder: Path, *, first: int, recipe: Mapping[str, Any]) -> Sinks:
    """Opens sinks for a run that has done `first` iterations.

    Raises:
        OSError: One cannot be opened: nobody is logged in, say.
    """
    opened: dict[str, Sink] = {}
    for name in names:
        try:
            opened[name] = SINKS[name][1](folder, first, recipe)
        except Exception as error:  # whatever a client of a service may raise
            Sinks(opened).close()
            raise OSError(
                f"{name} could not be opened ({type(error).__name__}: {error}); remedy it, or leave it out "
                f"of the sinks, and go on with --resume: {folder} has been begun."
            ) from error
    return Sinks(opened)


class Sinks:
    """Several sinks as one that never raises: the first error of each is shown, the run goes on.

    Args:
        sinks: By name.
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)
        self._failed: set[str] = set()

    def write(self, records: Records) -> None:
        """Hands the records to every sink, also to one that failed before: a network may come back."""
        for name, sink in self._sinks.items():
            self._try(name, lambda sink=sink: sink.write(records))

    def close(self) -> None:
        """Closes every sink."""
        for name, sink in self._sinks.items():
            self._try(name, sink.close)

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a client of a service may raise
            if name not in self._failed:
                print(
                    f"warning: {name} failed ({type(error).__name__}: {error}); the run goes on, further "
                    "failures are not shown, and metrics.jsonl has everything.",
                    file=sys.stderr,
                )
            self._failed.add(name)


def flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, names joined by "/"; `step`, text, lists and null are left out.

    Example:
        >>> list(flatten({"step": 3, "loss": {"digits": 1.5, "mnist": None}, "skipped": 0}))
        [('loss/digits', 1.5), ('skipped', 0.0)]
    """
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and (prefix or name != "step"):
            yield prefix + name, float(value)
