"""The table of an experiment: our figures beside the published ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from plan import seconds_of_step

from celo2.evaluate.analysis.standings import TaskRuns
from celo2.evaluate.suite.results import RunResult
from celo2.report.kit import MeanStd
from celo2.report.table import NONE, Datum, Table, as_markdown_table

if TYPE_CHECKING:
    from experiment import Experiment
    from grids import Grid

    from celo2.tasks.base import Size


class Figure(NamedTuple):
    """A published figure, at full size.

    Attributes:
        optimizer: The package's name of the optimizer that the figure belongs to.
        value: The figure as stated there.
        source: The paper, and notes about the figure.
    """

    optimizer: str
    value: str
    source: str


class Ours(NamedTuple):
    """Our results for an optimizer.

    Attributes:
        optimizer: Its name.
        setting: Learning rate and weight decay of the final runs; None if no setting is finished.
        edge: The edge of the tuned grid at which the setting lies, in words; "" for none.
        unfinished: How many settings of that grid are tuned, in words; "" if all are.
        tuned: Loss of that setting in tuning; None if it was not among those tuned or is not finished.
        loss: Validation loss of the final runs, finite or not; None without runs.
        accuracy: Accuracy of the final runs.
        seeds: Number of final runs.
        diverged: Number of final runs that diverged.
        step_seconds: Median seconds of a step, with one run per device; None without runs.
        grid: The grid and its origin, in words.
    """

    optimizer: str
    setting: tuple[float, float] | None
    edge: str
    unfinished: str
    tuned: MeanStd | None
    loss: MeanStd | None
    accuracy: MeanStd | None
    seeds: int
    diverged: int
    step_seconds: float | None
    grid: str

    @classmethod
    def of(
        cls,
        optimizer: str,
        tuning: TaskRuns | None,
        final: TaskRuns | None,
        setting: tuple[float, float] | None,
        grid: Grid,
        finished: Sequence[bool] = (),
    ) -> Ours:
        """Takes an optimizer's figures from the runs of both stages, with only this setting.

        Args:
            optimizer: Its name.
            tuning: The runs of the grids; None if there are none.
            final: The runs of the best settings; None if there are none.
            setting: Learning rate and weight decay; None if no setting is finished.
            grid: The grid that it is tuned over, whether or not all of it is finished.
            finished: Whether the run of each setting in the grid is finished; empty if the setting was given.
        """
        tuned = tuning.cells.get(optimizer) if tuning else None
        runs, before = (_runs_of(stage, optimizer, setting) for stage in (final, tuning))
        chosen = tuned is not None and tuned.best is not None and setting == tuned.best[:2]
        accurate = bool(runs) and runs[0].valid_accuracy is not None
        timed = runs or (tuned.runs if tuned else ())
        return cls(
            optimizer,
            setting,
            grid.edge(*setting) if setting and chosen else "",
            "" if all(finished) else f"{sum(finished)} of {len(finished)} settings tuned",
            _over(before, lambda run: run.final_valid_loss),
            _over(runs, lambda run: run.final_valid_loss),
            _over(runs, _final_accuracy) if accurate else None,
            len(runs),
            sum(run.diverged for run in runs),
            statistics.median(map(seconds_of_step, timed)) if timed else None,
            grid.describe(),
        )


def format_table(experiment: Experiment, size: Size, runs: TaskRuns, ours: list[Ours]) -> str:
    """Returns a Markdown page: the runs, the table, the sources, and differences from the published runs."""
    facts = runs.facts
    lines = [
        f"# {experiment.title}",
        "",
        f"Size {size}: {facts.num_parameters:,} parameters, {facts.dataset}, batches of "
        f"{facts.batch_size:,}, {runs.steps:,} steps.",
    ]
    if size != "full" or runs.steps != experiment.steps:
        lines.append(
            f"**The texts' figures are of the full size and {experiment.steps:,} steps: ours are not "
            "comparable with them.**"
        )
    lines += ["", *as_markdown_table(_table(experiment, ours)), "", "Sources of the texts' figures:", ""]
    lines += [f"- {one.optimizer}, {one.value}: {one.source}" for one in experiment.figures]
    lines += ["", "Grids:", "", *(f"- {one.optimizer}: {one.grid}" for one in ours)]
    lines += ["", "Differences from the published runs:", ""]
    lines += [f"- {sentence}" for sentence in experiment.differences]
    return "\n".join(lines) + "\n"


def _table(experiment: Experiment, ours: list[Ours]) -> Table:
    theirs: dict[str, list[str]] = {}
    for figure in experiment.figures:
        theirs.setdefault(figure.optimizer, []).append(figure.value)
    what = "validation loss" if experiment.measure == "loss" else "validation accuracy"
    rows = [
        [
            Datum(one.optimizer, one.optimizer),
            Datum(_setting(one), None),
            _mean(one.tuned),
            _mean(one.loss),
            _mean(one.accuracy),
            Datum(f"{one.seeds}, {one.diverged} diverged" if one.diverged else str(one.seeds), one.seeds),
            Datum(NONE if one.step_seconds is None else f"{1e3 * one.step_seconds:.3g}", one.step_seconds),
            Datum("; ".join(theirs.pop(one.optimizer, [])) or NONE, None),
        ]
        for one in ours
    ]
    nothing = [Datum(NONE, None)] * 6
    rows += [[Datum(name, name), *nothing, Datum("; ".join(values), None)] for name, values in theirs.items()]
    columns = (
        "optimizer",
        "best setting",
        "loss in tuning",
        "validation loss, ours",
        "accuracy, ours",
        "seeds",
        "ms/step",
        f"{what}, the texts (full size)",
    )
    return Table(columns, rows)


def _setting(one: Ours) -> str:
    text = NONE if one.setting is None else "{:g}, wd {:g}".format(*one.setting)
    remarks = "; ".join(filter(None, (one.edge and f"edge: {one.edge}", one.unfinished)))
    return f"{text} ({remarks})" if remarks else text


def _mean(value: MeanStd | None) -> Datum:
    return Datum(NONE, None) if value is None else Datum(str(value), value.mean)


def _runs_of(
    stage: TaskRuns | None, optimizer: str, setting: tuple[float, float] | None
) -> tuple[RunResult, ...]:
    """Returns a stage's runs of an optimizer with this learning rate and weight decay."""
    cell = stage.cells.get(optimizer) if stage else None
    if cell is None:
        return ()
    return tuple(run for known, runs in cell.settings.items() if known[:2] == setting for run in runs)


def _over(runs: Sequence[RunResult], of: Callable[[RunResult], float]) -> MeanStd | None:
    with np.errstate(invalid="ignore"):  # deviations of non-finite losses
        return MeanStd.over(np.array([of(run) for run in runs]))


def _final_accuracy(run: RunResult) -> float:
    assert run.valid_accuracy is not None
    return float(run.valid_accuracy[-1])
