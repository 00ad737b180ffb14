"""The dry run: checks for the data, and states the number of runs, their memory and their time.

Every figure except the numbers of parameters, runs and steps is an estimate and is called one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from celo2.baselines import find_optimizer
from celo2.evaluate.suite.results import RunResult
from celo2.evaluate.suite.spec import Suite
from celo2.tasks.base import Task
from celo2.tasks.micro_batches import split_batches
from celo2.tasks.vision.datasets import find_folder
from celo2.training.optimizer_step import AHEAD
from celo2.training.timing import count_bytes

if TYPE_CHECKING:
    from arguments import Arguments
    from experiment import Experiment

GRADIENT_TREES = AHEAD + 1 + 2  # of queued steps, the sum over micro-batches and the part being added
GIB = 2**30


class Need(NamedTuple):
    """The data set of a full-size run.

    Attributes:
        folder: Name of its folder, inside the --data folder.
        what: Content and origin of the folder.
        num_bytes: Number of bytes that a run reads.
        on_device: Number of these bytes that are on the device.
        check_content: Raises an OSError or ValueError that says what is wrong with a folder.
    """

    folder: str
    what: str
    num_bytes: float
    on_device: float
    check_content: Callable[[Path], None]

    def describe(self) -> str:
        """Describes the data set on one line, for the help and for messages."""
        return f"DIR/{self.folder} of --data DIR holds {self.what} ({self.num_bytes / 1e9:.1f} GB are read)."

    def check(self) -> Path:
        """Returns the folder.

        Raises:
            FileNotFoundError: The folder does not exist.
            OSError, ValueError: Its content is incomplete or damaged.
        """
        folder = find_folder(self.folder)
        if folder is None:
            raise FileNotFoundError(
                f"the data is not there: {self.describe()} Neither --data (or $CELO2_DATA) nor "
                "~/.cache/celo2 has such a folder. --size tiny needs no data."
            )
        self.check_content(folder)
        return folder


def describe_plan(
    experiment: Experiment,
    arguments: Arguments,
    task: Task,
    suites: Sequence[Suite],
    finished: Sequence[RunResult],
) -> str:
    """Returns the plan as text.

    Args:
        experiment: What the script declares.
        arguments: The command line.
        task: The task, on stand-in data if the data set is missing.
        suites: The suites to train: grids first, then the best settings.
        finished: Runs in the tuning folder, which have measured step times.
    """
    if arguments.rows:
        task = split_batches(task, arguments.rows)
    rows = min(task.rows_at_once or task.batch_size, task.batch_size)
    params = jax.eval_shape(task.init, jax.random.key(0))
    seconds, how = _step_seconds(arguments, task, params, rows, finished)
    lines = [
        f"dry run of {experiment.title}: nothing is trained.",
        "",
        f"data        {_describe_data(experiment.need, arguments)}",
        f"network     {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters, float32",
        f"batch       {task.batch_size:,} examples, {rows:,} at once (--rows)",
        f"step        {seconds:.3g} s, {how}",
        "",
        *_describe_runs(suites, seconds, jax.local_devices()),
        "",
        *_describe_memory(task, params, rows, suites, experiment.need if arguments.size == "full" else None),
    ]
    return "\n".join(lines)


def _describe_data(need: Need, arguments: Arguments) -> str:
    if arguments.size != "full":
        return f"a stand-in; at full size {need.describe()}"
    try:
        return f"complete: {need.check()}"
    except (OSError, ValueError) as error:
        return f"MISSING OR DAMAGED: {error}"


def _describe_runs(suites: Sequence[Suite], seconds: float, devices: Sequence[Any]) -> list[str]:
    """Returns a line with the runs and hours of each optimizer, and one with the totals."""
    runs: dict[str, list[int]] = {}
    for suite in suites:
        counts = runs.setdefault(suite.optimizers[0], [])
        counts.append(suite.count_runs())
    lines = [f"{'runs':28} {'tuning':>7} {'final':>7} {'device hours (estimate)':>24}"]
    steps = suites[0].steps
    for name, counts in runs.items():
        tuning, final = ([0] * (2 - len(counts)) + counts)[-2:]
        lines.append(f"  {name:26} {tuning:7} {final:7} {sum(counts) * steps * seconds / 3600:24,.1f}")
    total = sum(map(sum, runs.values()))
    hours = total * steps * seconds / 3600
    lines.append(f"  {'together':26} {total:15} {hours:24,.1f}")
    lines.append(
        f"  of {steps:,} steps each. {len(devices)} × {devices[0].device_kind} here, each trains a run of "
        f"its own: {hours / len(devices):,.1f} hours or a little more; one run {steps * seconds / 3600:.2f}."
    )
    return lines


def _describe_memory(
    task: Task, params: Any, rows: int, suites: Sequence[Suite], need: Need | None
) -> list[str]:
    """Returns lines about the memory of one device."""
    size = count_bytes(params)
    activations = count_activations(task, params, rows)
    data = need.on_device if need else count_bytes(dict(task.dataset.train))
    states = {suite.optimizers[0]: _state_bytes(suite, params) for suite in suites}
    parts = {
        "parameters": size,
        f"gradients ({GRADIENT_TREES} trees of them)": GRADIENT_TREES * size,
        f"activations of {rows} examples": activations,
        "data on the device": data,
        "optimizer state, the largest": max(states.values()),
    }
    lines = ["memory of a device (estimate, before the compiler fuses anything)"]
    lines += [f"  {name:40} {number / GIB:9.3f} GiB" for name, number in parts.items()]
    needed = sum(parts.values())
    lines.append(f"  {'together':40} {needed / GIB:9.3f} GiB")
    lines += [f"  state of {name:31} {state / GIB:9.3f} GiB" for name, state in states.items()]
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        fits = "it fits" if needed <= limit else "it does not fit: use fewer --rows"
        lines.append(f"  {'a device here has':40} {limit / GIB:9.3f} GiB: {fits}")
    return lines


def count_activations(task: Task, params: Any, rows: int) -> int:
    """Counts the bytes that `jax.vjp` stores for the backward pass of `rows` examples."""

    def kept(params: Any, batch: Any) -> Any:
        return jax.vjp(lambda params: task.loss(params, batch), params)[1]

    return count_bytes(jax.eval_shape(kept, params, _batch_shapes(task, rows))) - count_bytes(params)


def count_operations(task: Task, params: Any, rows: int) -> float:
    """Counts the floating-point operations of a batch's loss and gradient, as XLA does before optimizing."""
    step = jax.jit(jax.value_and_grad(task.loss)).lower(params, _batch_shapes(task, rows))
    analysis: Any = step.cost_analysis()
    return float(analysis["flops"]) * task.batch_size / rows


def _batch_shapes(task: Task, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    arrays = {name: np.asarray(array[:1]) for name, array in task.dataset.train.items()}
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype) for name, array in arrays.items()
    }


def _state_bytes(suite: Suite, params: Any) -> int:
    spec = find_optimizer(suite.optimizers[0], num_steps=suite.steps)
    return count_bytes(jax.eval_shape(spec.make(1e-3, suite.weight_decays[-1]).init, params))


def seconds_of_step(run: RunResult) -> float:
    """Returns the seconds of a step of runs with a device each: each run's share times their number."""
    share = re.match(r"share of (\d+) runs", run.timing)
    return run.seconds_per_step * (int(share[1]) if share else 1)


def _step_seconds(
    arguments: Arguments, task: Task, params: Any, rows: int, finished: Sequence[RunResult]
) -> tuple[float, str]:
    """Returns the seconds of a step, and their origin in words."""
    if arguments.step_seconds:
        return arguments.step_seconds, "as given with --step-seconds"
    known = [seconds for run in finished if math.isfinite(seconds := seconds_of_step(run))]
    if known:
        return float(np.median(known)), f"measured: median of {len(known)} finished runs in {arguments.out}"
    operations = count_operations(task, params, rows)
    return operations / (arguments.tflops * 1e12), (
        f"an estimate: {operations:.3g} operations of loss and gradient at an assumed {arguments.tflops:g} "
        "TFLOP/s; the optimizer's own time and reading of data are not in it (--step-seconds, --tflops)"
    )
