"""Callbacks that observe a meta-training run without affecting its result: loggers and probes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from celo2.meta.config import MetaConfig
from celo2.meta.outer import OuterState
from celo2.meta.probe import Probe
from celo2.meta.probe.log import ProbeLog, as_point, describe_probe
from celo2.meta.run.distributed import is_first
from celo2.meta.run.loggers import open_loggers
from celo2.meta.run.options import TrainOptions


def check_processes(options: TrainOptions) -> None:
    """Refuses probes of a run on several processes, which would all wait for the one that probes.

    Raises:
        ValueError: Probes are requested on several processes; the message says what to do.
    """
    if options.probe_every and jax.process_count() > 1:
        raise ValueError(
            f"probe_every must be 0 in a run of {jax.process_count()} processes, got {options.probe_every}; "
            "its checkpoints' weights are all kept, so probe them afterwards: celo2 probe OUT."
        )


def check_variant(config: MetaConfig, options: TrainOptions) -> None:
    """Refuses to probe a predecessor, which has no learning rate to tune, or a rule of another size.

    Raises:
        ValueError: The variant cannot be probed; the message says what to do.
    """
    if options.probe_every and config.member is not None:
        raise ValueError(
            f"probe_every must be 0 for {config.variant!r}, which sets its own step sizes, got "
            f"{options.probe_every}; compare its checkpoints with celo2 compare."
        )
    if options.probe_every and config.rule_options:
        raise ValueError(
            f"probe_every must be 0 with rule_options {config.rule_options}, got {options.probe_every}: "
            "the programs of a probe are for the usual rule. Probe the finished run: celo2 probe RUN."
        )


def _refuse(theta: Mapping[str, Any]) -> dict[str, Any]:
    raise AssertionError(f"a run without probes took one of {len(theta)} arrays")


class Callbacks:
    """The loggers and probes of one run; a context manager that closes the loggers.

    Args:
        config: The recipe.
        options: The options of the run, which include its loggers and probes.
        folder: Folder of the run.
        first: Number of iterations already done.
        save: Writes a state and its weights, and returns the path of the weights. A state is saved before it
            is probed, so that a resumed run neither misses a probe nor repeats one.

    Raises:
        ValueError: See `ProbeLog.start`.
    """

    def __init__(
        self,
        config: MetaConfig,
        options: TrainOptions,
        folder: Path,
        first: int,
        save: Callable[[OuterState], Path],
    ) -> None:
        self._first, self._save = first, save
        measure = _refuse if config.member else Probe.of_variant(options.probe, config.variant).measure
        self._log = ProbeLog(folder, options.probe_every, options.probe, measure)
        if is_first():
            self._log.start(first)
        names = options.sinks if is_first() else ()
        self._loggers = open_loggers(names, folder, first=first, recipe=dataclasses.asdict(config))

    def __enter__(self) -> Callbacks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loggers.close()

    def begin(self, state: OuterState, make_start: Callable[[], OuterState]) -> None:
        """Takes missing probes: of the starting weights and of the resumed state.

        Args:
            state: The current state of the run.
            make_start: Creates the state before the first iteration.
        """
        if self._log.is_due(0):
            self._take(make_start() if self._first else state)
        self.probe(state)

    def steps_to_next(self, step: int) -> int:
        """Returns the number of outer iterations until the next probe; very large without probes."""
        return self._log.steps_to_next(step)

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Passes iterations' records to the loggers."""
        self._loggers.write(records)

    def probe(self, state: OuterState) -> bool:
        """Takes a probe if one is due; returns whether it did."""
        due = self._log.is_due(int(state.count))
        if due:
            self._take(state)
        return due

    def _take(self, state: OuterState) -> None:
        record = self._log.take(int(state.count), self._save(state))
        best = "; the best so far" if self._log.best is record else ""
        print(f"{describe_probe(record)}{best}", flush=True)
        if record["step"] >= self._first:  # loggers accept no steps before those they already have
            self._loggers.write([as_point(record)])
