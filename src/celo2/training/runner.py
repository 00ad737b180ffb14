"""Trains one task with one optimizer at all learning rates and seeds together.

The runs of a grid are trained side by side, as many at once as fit into memory, in pieces so
that progress can be shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from celo2._utils.checks import check_rates, check_seeds
from celo2.baselines import EvalParams
from celo2.tasks.base import Task
from celo2.training.checkpoint import Checkpoints
from celo2.training.grid import RunGrid
from celo2.training.optimizer_step import MakeFromSchedule, Program, Record, Runs
from celo2.training.protocol import NUM_EVALS
from celo2.training.task_step import SharedTask

DEFAULT_MAX_MEMORY = 4 * 2**30  # bytes


class Progress(NamedTuple):
    """Progress of a grid of runs.

    Attributes:
        done: Share of the work done, in [0, 1].
        step: Steps taken by the current runs.
        steps: Length of a run.
        loss: The lowest mean training loss of these runs in the last piece; NaN before the first.
    """

    done: float
    step: int
    steps: int
    loss: float


OnProgress = Callable[[Progress], None]


class GridRunner:
    """A task with all learning rates and seeds, compiled and ready to train.

    The initial parameters and the batches depend on the seed alone: runs with the same seed see the
    same ones regardless of optimizer, learning rate and number of devices.

    Args:
        task: The problem; runners of several optimizers can share it, with its compiled programs.
        make_optimizer: `(schedule of the learning rate, *inputs) → Optax transform`; called under tracing.
        learning_rates: Peak learning rates, positive.
        seeds: Seeds, non-negative.
        steps: Length of a run, ≥ 2.
        devices: Number of local devices to use; 0: all of them.
        max_memory: Bytes that the runs trained together may use on all devices.
        inputs: Trees of arrays for `make_optimizer`: arguments of the compiled program, so training
            with other values needs no compilation.
        num_evals: Validations of a run, the last one after its last step.
        schedule: Name of the learning-rate schedule in `celo2.training.protocol.SCHEDULES`.
        eval_params: The parameters to validate, as in `OptimizerSpec`; None: the trained parameters.

    Attributes:
        initial_loss: Approximate loss of an untrained network.
        width: Number of runs that are trained at once.
        num_devices: Number of devices that they are spread over.

    Raises:
        ValueError: There is no learning rate or seed, or one is out of range, or a run is too short.
    """

    def __init__(
        self,
        task: SharedTask,
        make_optimizer: MakeFromSchedule,
        learning_rates: Sequence[float],
        *,
        seeds: Sequence[int] = (0,),
        steps: int = 1000,
        devices: int = 0,
        max_memory: float = DEFAULT_MAX_MEMORY,
        inputs: Sequence[Any] = (),
        num_evals: int = NUM_EVALS,
        schedule: str = "cosine",
        eval_params: EvalParams | None = None,
    ) -> None:
        _check(learning_rates, seeds, steps)
        self._learning_rates, self._seeds = learning_rates, seeds
        num_runs = len(learning_rates) * len(seeds)
        used = jax.local_devices()[: devices or None][:num_runs]
        self._program = Program(
            task.place(used), make_optimizer, steps, inputs, num_evals, schedule, eval_params
        )
        self.width = self._program.fit(num_runs, max_memory)
        self.num_devices = len(used)
        self.initial_loss = task.task.initial_loss

    def train(
        self,
        on_progress: OnProgress | None = None,
        *,
        inputs: Sequence[Any] | None = None,
        learning_rates: Sequence[float] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> RunGrid:
        """Trains every run.

        Args:
            on_progress: Called after each piece.
            inputs: Replacement for the constructor's `inputs`, with the same shapes.
            learning_rates: Replacement for the constructor's learning rates; as many.
            checkpoints: The folder in which long runs save checkpoints, and from which they resume.

        Raises:
            ValueError: The number of rates differs, or one is out of range.
        """
        given = self._program.inputs if inputs is None else inputs
        rates = self._learning_rates if learning_rates is None else learning_rates
        _check(rates, self._seeds, self._program.steps)
        if len(rates) != len(self._learning_rates):
            raise ValueError(f"expected {len(self._learning_rates)} learning rates, got {list(rates)}.")
        pairs = np.asarray([(rate, seed) for rate in rates for seed in self._seeds])
        record, seconds_per_step = _train_in_chunks(
            self._program, pairs, self.width, given, on_progress, checkpoints
        )
        shape = (len(rates), len(self._seeds), -1)
        task = self._program.placed.task
        return RunGrid(
            learning_rates=np.asarray(rates, np.float64),
            seeds=np.asarray(self._seeds),
            train_loss=record.train_loss.reshape(shape),
            valid_steps=np.asarray([stop for _, stop in self._program.bounds]),
            valid_loss=record.valid_loss.reshape(shape),
            valid_accuracy=record.valid_accuracy.reshape(shape) if task.accuracy else None,
            initial_loss=task.initial_loss,
            seconds_per_step=seconds_per_step,
        )


def run_grid(
    task: Task,
    make_optimizer: MakeFromSchedule,
    learning_rates: Sequence[float],
    *,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> RunGrid:
    """Compiles and trains in one call; the other arguments and the errors are those of `GridRunner`."""
    return GridRunner(SharedTask(task), make_optimizer, learning_rates, **options).train(on_progress)


def _train_in_chunks(
    program: Program,
    pairs: np.ndarray,
    width: int,
    inputs: Sequence[Any],
    on_progress: OnProgress | None,
    checkpoints: Checkpoints | None,
) -> tuple[Record, float]:
    """Trains `(learning rate, seed)` pairs, `width` at a time; a last, shorter chunk repeats its last run.

    Returns:
        Their results and the seconds of a step of one run, as in `RunGrid`.
    """
    chunks = [pairs[np.arange(at, at + width).clip(max=len(pairs) - 1)] for at in range(0, len(pairs), width)]
    records, seconds = [], []
    for number, chunk in enumerate(chunks):
        pieces = []
        checkpoint = None if checkpoints is None else checkpoints.of(chunk)
        for piece in program.train(Runs(chunk[:, 0], chunk[:, 1]), inputs, checkpoint):
            losses = piece.record.train_loss
            pieces.append(piece.record)
            seconds.append(piece.seconds / losses.size)
            if on_progress:
                done = (number + piece.stop / program.steps) / len(chunks)
                on_progress(Progress(done, piece.stop, program.steps, _lowest(losses.mean(-1))))
        records.append(_concatenate(pieces, axis=1))
    record = Record(*(array[: len(pairs)] for array in _concatenate(records, axis=0)))
    return record, float(np.median(seconds))


def _concatenate(records: Sequence[Record], axis: int) -> Record:
    return Record(*(np.concatenate(arrays, axis) for arrays in zip(*records, strict=True)))


def _lowest(losses: np.ndarray) -> float:
    finite = losses[np.isfinite(losses)]
    return float(finite.min()) if finite.size else math.nan


def _check(learning_rates: Sequence[float], seeds: Sequence[int], steps: int) -> None:
    check_rates("learning rates", tuple(learning_rates))
    if not len(seeds):
        raise ValueError("seeds must be one or more whole numbers in [0, 2³²), got none.")
    for seed in seeds:
        check_seeds(seed)
    if steps < 2:
        raise ValueError(f"a run needs at least 2 steps (warm-up and decay), got {steps}.")
