"""The meta-training loop: resume, iterate, report, save.

`meta_train` runs a recipe; `CallSize` sizes the device calls, so that the device stays busy and Ctrl-C
takes effect within about a second.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from celo2._utils.signals import Stopped, collecting_stops
from celo2._utils.streams import library_log
from celo2._version import __version__
from celo2.meta import outer
from celo2.meta.config import RECIPE_ONLY, MetaConfig
from celo2.meta.inner.families import (
    check_devices,
    describe,
    load_datasets,
    stack_data,
    task_names,
)
from celo2.meta.inner.theta import BUILT_IN, check_start, load_start
from celo2.meta.outer import MAX_STEPS, make_outer_optimizer
from celo2.meta.run import distributed
from celo2.meta.run.callbacks import Callbacks, check_processes, check_variant
from celo2.meta.run.errors import MetaGradientError, SkipLimit
from celo2.meta.run.folder import RunFiles
from celo2.meta.run.loggers import check_loggers
from celo2.meta.run.options import TrainOptions, write_options
from celo2.meta.run.progress import Progress
from celo2.meta.run.recipe import RECIPE_FILE
from celo2.tasks.base import Dataset

NOTICE = "stopping: the iterations at work are finished and saved; once more ends the run at once."
LOG_FILE = "libraries.log"  # log messages of Orbax and other libraries


def meta_train(
    config: MetaConfig, options: TrainOptions, *, outer_optimizer: optax.GradientTransformation | None = None
) -> Path:
    """Meta-trains a rule; Ctrl-C, SIGTERM and SIGHUP save a checkpoint and end the run.

    Args:
        config: The recipe.
        options: Folder, length, checkpoints and callbacks.
        outer_optimizer: Any Optax chain, for a recipe whose `outer_optimizer` is "custom"; pass it again to
            resume or repeat the run.

    Returns:
        The path of the last weights written.

    With several processes joined by `jax.distributed`, each must make the same call, with one folder that
    all of them can access.

    Raises:
        Stopped: A signal has ended the run; this is a KeyboardInterrupt. After a first signal, a checkpoint
            has been saved; a second one ends the run at once, and the last checkpoint is intact.
        MetaGradientError: Too many meta-gradients were not finite; a checkpoint has been saved.
        RunWriteError: A file of the run could not be written; the last checkpoint is intact.
        ProcessLostError: Another process of the run has ended; the last checkpoint is intact.
        ValueError: See `make_outer_optimizer`, `check_loggers`, `check_variant`, `check_start`, `Callbacks`.
        ImportError: See `check_loggers`.
        FileExistsError, FileNotFoundError, ValueError: See `RunFiles.start`.
    """
    make_outer_optimizer(config, outer_optimizer)  # rejects before anything is written
    check_loggers(options.sinks)
    check_processes(options)
    check_variant(config, options)
    check_start(config)
    check_devices(config, jax.device_count())
    with distributed.losses_named(options.out), RunFiles(options.out) as files:
        files.check(resume=options.resume)
        datasets = load_datasets(config)
        files.start(config, resume=options.resume)
        if distributed.is_first():
            write_options(files.folder, options)
        try:
            with library_log(files.folder / LOG_FILE):
                return _run(config, options, files, datasets, outer_optimizer)
        except KeyboardInterrupt as stop:
            if str(stop):
                raise  # its message already states the progress
            message = f"ended at once; continue with: {_describe_resumption(config, options)}"
            raise Stopped(getattr(stop, "number", signal.SIGINT), message) from None


def _run(
    config: MetaConfig,
    options: TrainOptions,
    files: RunFiles,
    datasets: dict[str, Dataset],
    optimizer: optax.GradientTransformation | None,
) -> Path:
    mesh = outer.make_mesh()
    provenance = _provenance(config, options, datasets)
    config = files.with_own_start(config)
    provenance.update(_start_provenance(config))
    restored = files.restore(config, mesh, optimizer) if options.resume else None
    state = restored or outer.init(config, mesh, optimizer)
    outer_steps = outer.make_outer_steps(config, mesh, optimizer)
    data = distributed.replicate(stack_data(datasets, config), mesh)
    first = step = int(state.count)
    history = files.read_metrics()
    limit = SkipLimit(options.max_skipped, options.skip_window, history)
    weights: Path | None = None
    if restored and not files.weights_path(config, first).exists():  # killed between the two
        weights = files.save(state, config, provenance)
    is_first = distributed.is_first()
    progress = Progress(config.variant, first, options.outer_steps, history, shown=is_first)
    save = partial(files.save, config=config, provenance=provenance)
    observing = Callbacks(config, options, files.folder, first, save)
    with observing as callbacks, progress, collecting_stops(NOTICE) as stop:
        callbacks.begin(state, lambda: outer.init(config, mesh, optimizer))
        call_size = CallSize()
        while step < options.outer_steps:
            to_checkpoint = options.checkpoint_every - step % options.checkpoint_every
            to_stop = min(to_checkpoint, options.outer_steps - step, callbacks.steps_to_next(step))
            (call_steps,) = distributed.agree(call_size.num_steps)
            num_steps = min(call_steps, to_stop)
            state, metrics = outer_steps(state, data, num_steps)
            records = _as_records(step, num_steps, jax.device_get(metrics), config, call_size)
            step += num_steps
            files.append_metrics(records)
            callbacks.write(records)
            progress.update(records)
            fault = limit.check(records)
            (stopped_by,) = distributed.agree(stop[0] if stop else 0)
            ends = step == options.outer_steps or bool(stopped_by) or bool(fault)
            if ends or step % options.checkpoint_every == 0:
                weights = save(state)
            if fault:
                raise MetaGradientError(fault)
            if not stopped_by and callbacks.probe(state):
                call_size.skip()
            if stopped_by and step < options.outer_steps:
                how = _describe_resumption(config, options)
                raise Stopped(stopped_by, f"stopped after {step} iterations; continue with: {how}")
            if ends:
                break
    return weights or save(state)  # nothing was left to do


def _describe_resumption(config: MetaConfig, options: TrainOptions) -> str:
    """Returns the command that continues a run."""
    if config.outer_optimizer == "custom":
        return "meta_train(…, resume=True), with the same outer_optimizer"
    words = ("celo2", "meta-train", "--resume", "--out", str(options.out), *options.machine_words)
    every = ", in every process with its own --process-id" if jax.process_count() > 1 else ""
    return shlex.join(words) + every


def _as_records(
    first: int, num_steps: int, metrics: outer.OuterMetrics, config: MetaConfig, call_size: CallSize
) -> list[dict[str, Any]]:
    """Converts metrics to records of the iterations after `first`, with equally spaced times."""
    return [
        {
            "step": first + 1 + index,
            "seconds": round(seconds, 3),
            "meta_loss": _number_or_none(metrics.meta_loss[index]),
            "loss_per_task": dict(
                zip(task_names(config), map(_number_or_none, metrics.loss_per_task[index]), strict=True)
            ),
            "grad_norm": _number_or_none(metrics.grad_norm[index]),
            "signal_to_noise": _number_or_none(metrics.signal_to_noise[index], digits=4),
            "diverged": float(metrics.diverged[index]),
            "resets": int(metrics.resets[index]),
            "ended_runs": int(metrics.ended_runs[index]),
            "diverged_runs": int(metrics.diverged_runs[index]),
            "skipped": int(metrics.skipped[index]),
            **({"resumed": int(metrics.resumed[index])} if config.resume_probability else {}),
            **({"reverse_share": float(metrics.reverse_share[index])} if config.reverse_steps else {}),
        }
        for index, seconds in enumerate(call_size.end(num_steps))
    ]


def _number_or_none(value: ArrayLike, *, digits: int = 17) -> float | None:
    """Converts a number for JSON, which has no NaN: non-finite values and empty means become null."""
    return float(f"{float(value):.{digits}g}") if np.isfinite(value) else None  # type: ignore[arg-type]


def _provenance(config: MetaConfig, options: TrainOptions, datasets: dict[str, Dataset]) -> dict[str, str]:
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name != "variant":
            words = map(str, value if isinstance(value, tuple) else (value,))
            changed[field.name] = f"--{field.name.replace('_', '-')} {shlex.join(words)}"
    words = [f"--variant {config.variant} --outer-steps {options.outer_steps}", *changed.values()]
    if changed.keys() & set(RECIPE_ONLY):  # which have no flag
        words = [f"--config {RECIPE_FILE} --outer-steps {options.outer_steps}"]
    return {
        "made_by": f"celo2 {__version__}",
        "command": " ".join(["celo2 meta-train", *words]),
        "data": describe(datasets),
        "seed": str(config.seed),
        "recipe": " ".join(config.to_json().split()),
    }


def _start_provenance(config: MetaConfig) -> dict[str, str]:
    """Returns the provenance of the starting weights: how they were made, and their file's hash."""
    if config.start in BUILT_IN:
        return {}
    made = load_start(config).provenance
    facts = {name: made[name] for name in ("command", "outer_steps") if name in made}
    facts["sha256"] = hashlib.sha256(Path(config.start).read_bytes()).hexdigest()
    return {f"start_{name}": fact for name, fact in facts.items()}


CALL_SECONDS = 1.0  # between checks of Ctrl-C, lines of metrics, and moves of the progress bar


class CallSize:
    """Chooses how many outer iterations to run per device call, from the measured time of an iteration.

    Attributes:
        num_steps: Iterations of the next call, in [1, MAX_STEPS]; 1 until an iteration has been timed.
    """

    def __init__(self) -> None:
        self.num_steps = 1
        self._started = self._last = time.monotonic()
        self._calls = 0

    def end(self, num_steps: int) -> list[float]:
        """Records the end of a call of `num_steps` iterations; returns the end time of each, in seconds."""
        before, self._last = self._last, time.monotonic()
        each = (self._last - before) / num_steps
        self._calls += 1
        if self._calls > 1:  # the first one compiles
            self.num_steps = min(max(round(CALL_SECONDS / max(each, 1e-9)), 1), MAX_STEPS)
        return [before - self._started + each * (index + 1) for index in range(num_steps)]

    def skip(self) -> None:
        """Excludes the time since the last call from the time of an iteration."""
        self._last = time.monotonic()
