"""Trains the groups of a suite locally: compiles a task's groups in parallel, then trains them in turn."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from celo2._utils.signals import interruptible_pool
from celo2.baselines import OptimizerSpec, find_optimizer
from celo2.evaluate.environment import describe_environment, describe_task
from celo2.evaluate.suite.checkpoint_names import digest_optimizer, digest_task, name_checkpoints
from celo2.evaluate.suite.program_digest import read_sources
from celo2.evaluate.suite.results import RunResult, TaskFacts
from celo2.evaluate.suite.spec import Group
from celo2.jax.runtime import compiler_options
from celo2.tasks.base import Batch, Params, Task
from celo2.tasks.micro_batches import split_batches
from celo2.tasks.registry import make_task
from celo2.training.checkpoint import MIN_SECONDS, Checkpoints
from celo2.training.optimizer_step import make_step
from celo2.training.runner import DEFAULT_MAX_MEMORY, GridRunner, Progress
from celo2.training.task_step import SharedTask
from celo2.training.timing import TimedStep, count_bytes, time_steps

TIMING_BUDGET = 3.0  # seconds for timing the steps of all optimizers of a task


class Machine(NamedTuple):
    """Resources of a group, and how steps are timed.

    Attributes:
        devices: The number of local devices to use; 0: all.
        max_memory: The bytes that the runs trained together may use.
        time_alone: Whether to time each optimizer's step alone, for a single run, in rounds interleaved with
            the others'; otherwise, a step's time is its share of the runs trained side by side.
        rows_at_once: The number of examples computed together (`celo2.tasks.micro_batches`); 0: the task's
            own.
        checkpoints: The folder for checkpoints within runs; None: no checkpoints.
        checkpoint_seconds: The minimum seconds between two checkpoints of a run.
    """

    devices: int = 0
    max_memory: float = DEFAULT_MAX_MEMORY
    time_alone: bool = False
    rows_at_once: int = 0
    checkpoints: Path | None = None
    checkpoint_seconds: float = MIN_SECONDS


ONE_MACHINE = Machine()


class Failure(NamedTuple):
    """Group that could not be trained, with the reason."""

    group: Group
    reason: str


class GroupProgress(NamedTuple):
    """Progress of the current group; its `progress` is None while the groups of a task are compiled."""

    group: Group
    progress: Progress | None


OnGroupProgress = Callable[[GroupProgress], None]


class _Prepared(NamedTuple):
    """Compiled group."""

    group: Group
    runner: GridRunner
    checkpoints: Checkpoints | None
    state_bytes: int
    step: TimedStep | None  # of one run alone


def train_groups(
    groups: Sequence[Group], machine: Machine = ONE_MACHINE, on_progress: OnGroupProgress | None = None
) -> Iterator[list[RunResult] | Failure]:
    """Trains groups of one task; yields each group's runs or failure, in the order given.

    The programs are compiled in parallel, but nothing else runs during training, so that step times
    are comparable.

    Args:
        groups: The groups, all of the same task.
        machine: The resources of each group.
        on_progress: Called before compilation and after each piece of training.
    """
    if on_progress:
        on_progress(GroupProgress(groups[0], None))
    try:
        task = make_task(groups[0].task)
        shared = SharedTask(split_batches(task, machine.rows_at_once) if machine.rows_at_once else task)
        facts = describe_task(shared.task)
        task_digest = "" if machine.checkpoints is None else _digest(groups[0].task, shared.task)
    except Exception as error:  # one failing task must not lose the others' results
        yield from (Failure(group, f"{type(error).__name__}: {error}") for group in groups)
        return
    if other := next((group.dataset for group in groups if group.dataset not in ("", facts.dataset)), ""):
        reason = (
            f"the folder has runs of it on {other}, and now it trains on {facts.dataset}; use another "
            "folder, or remove those runs."
        )
        yield from (Failure(group, reason) for group in groups)
        return
    with interruptible_pool() as pool:
        prepared = [pool.submit(_prepare, shared, facts, task_digest, group, machine) for group in groups]
        for future in prepared:
            future.exception()  # waits
    _time_alone(shared.task, [one.result().step for one in prepared if one.exception() is None])
    for group, future in zip(groups, prepared, strict=True):
        outcome = _train(group, facts, future, on_progress)
        yield outcome
        if not isinstance(outcome, Failure) and (checkpoints := future.result().checkpoints) is not None:
            shutil.rmtree(checkpoints.folder, ignore_errors=True)  # the caller has kept the runs
    jax.clear_caches()  # programs that no other task uses


def _digest(name: str, task: Task) -> str:
    read_sources()  # of the modules imported to make the task, before hours of training
    return digest_task(name, task)


def _prepare(
    shared: SharedTask, facts: TaskFacts, task_digest: str, group: Group, machine: Machine
) -> _Prepared:
    spec = find_optimizer(group.optimizer, num_steps=group.steps)
    if spec.weights != group.weights:
        raise ValueError(
            f"the weights of {group.optimizer} have changed since the suite began; start it again."
        )
    checkpoints = _place_checkpoints(group, spec, facts, task_digest, machine)
    runner = GridRunner(
        shared,
        lambda schedule: spec.make(schedule, group.weight_decay),
        group.learning_rates,
        seeds=group.seeds,
        steps=group.steps,
        devices=machine.devices,
        max_memory=machine.max_memory,
        schedule=group.schedule,
        eval_params=spec.eval_params,
    )
    step = _compile_alone(shared.task, spec, group) if machine.time_alone else None
    return _Prepared(group, runner, checkpoints, _state_bytes(shared.task, spec, group), step)


def _compile_alone(task: Task, spec: OptimizerSpec, group: Group) -> TimedStep:
    """Compiles a step of one run at the lowest learning rate, where no run diverges."""
    optimizer = spec.make(min(group.learning_rates), group.weight_decay)
    params, batch = _timing_inputs(task)
    return TimedStep(make_step(task, optimizer), optimizer, params, batch, compiler_options())


def _time_alone(task: Task, steps: Sequence[TimedStep | None]) -> None:
    """Times the steps that are to be timed alone, interleaved; if one fails, none has a time."""
    chosen = [step for step in steps if step is not None]
    if not chosen:
        return
    try:
        _, batch = _timing_inputs(task)
        time_steps(chosen, lambda: _timing_inputs(task)[0], batch, TIMING_BUDGET)
    except Exception:  # a failing optimizer is reported when it is trained; the others go on
        for step in chosen:
            step.times.clear()


def _timing_inputs(task: Task) -> tuple[Params, Batch]:
    params = task.init(jax.random.key(0))
    return params, task.first_batch(params, jax.random.key(1))


def _state_bytes(task: Task, spec: OptimizerSpec, group: Group) -> int:
    params = jax.eval_shape(task.init, jax.random.key(0))
    return count_bytes(jax.eval_shape(spec.make(group.learning_rates[0], group.weight_decay).init, params))


def _place_checkpoints(
    group: Group, spec: OptimizerSpec, facts: TaskFacts, task_digest: str, machine: Machine
) -> Checkpoints | None:
    """Returns the folder for a group's checkpoints; None without checkpoints."""
    if machine.checkpoints is None:
        return None
    digests = (task_digest, digest_optimizer(group.optimizer, spec))
    name = name_checkpoints(group, facts, machine.rows_at_once, digests)
    return Checkpoints(machine.checkpoints / name, machine.checkpoint_seconds)


def _train(
    group: Group,
    facts: TaskFacts,
    future: Future[_Prepared],
    on_progress: OnGroupProgress | None,
) -> list[RunResult] | Failure:
    try:
        prepared = future.result()
        grid = prepared.runner.train(
            on_progress and (lambda progress: on_progress(GroupProgress(group, progress))),
            checkpoints=prepared.checkpoints,
        )
    except Exception as error:  # one failing optimizer must not lose the others' results
        return Failure(group, f"{type(error).__name__}: {error}")
    steps, curves = grid.curve()
    environment, created = describe_environment(), datetime.datetime.now().astimezone()
    step, seconds_per_step, timing = prepared.step, grid.seconds_per_step, "alone"
    if step is not None and step.times:
        seconds_per_step = step.seconds
    else:
        runner = prepared.runner
        timing = f"share of {runner.width} runs side by side on {runner.num_devices} device(s)"
    return [
        RunResult(
            spec=spec,
            facts=facts,
            train_steps=steps,
            train_loss=curves[index].astype(np.float32),
            valid_steps=grid.valid_steps,
            valid_loss=grid.valid_loss[index],
            valid_accuracy=None if grid.valid_accuracy is None else grid.valid_accuracy[index],
            diverged_at=int(grid.diverged_at[index]),
            seconds_per_step=seconds_per_step,
            timing=timing,
            state_bytes=prepared.state_bytes,
            weights=group.weights,
            created=created.isoformat(timespec="seconds"),
            environment=environment,
        )
        for spec, index in zip(group.specs(), np.ndindex(curves.shape[:2]), strict=True)
    ]
