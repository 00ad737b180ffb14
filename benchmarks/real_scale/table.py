"""The table of an experiment: our figures, and beside them those of the texts."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from plan import seconds_of_step

from celo2.evaluate.analysis.standings import TaskRuns
from celo2.evaluate.suite.results import RunResult
from celo2.report.kit import MeanStd
from celo2.report.table import NONE, Datum, Table, as_markdown_table

if TYPE_CHECKING:
    from experiment import Experiment

    from celo2.tasks.base import Size


class Figure(NamedTuple):
    """A figure of a text, of the full size.

    Attributes:
        optimizer: The optimizer that it belongs to, by the package's name.
        value: The figure as the text has it.
        source: The text, and what else is to be known about the figure.
    """

    optimizer: str
    value: str
    source: str


class Ours(NamedTuple):
    """What was found for an optimizer.

    Attributes:
        optimizer: Its name.
        setting: Learning rate and weight decay of the final runs; None if no setting is finished.
        edge: Whether the tuned setting lies at the edge of its grid: "", or which in words.
        tuned: Loss of that setting in tuning; None if it was given, or is not finished.
        loss: Validation loss of the final runs; None without any.
        accuracy: Their share of right answers.
        seeds: Their number.
        step_seconds: Seconds of a step, each run on a device of its own, median; None without runs.
        grid: Where the grid is from.
    """

    optimizer: str
    setting: tuple[float, float] | None
    edge: str
    tuned: MeanStd | None
    loss: MeanStd | None
    accuracy: MeanStd | None
    seeds: int
    step_seconds: float | None
    grid: str

    @classmethod
    def of(
        cls,
        optimizer: str,
        tuning: TaskRuns | None,
        final: TaskRuns | None,
        setting: tuple[float, float] | None,
        grid: str,
    ) -> Ours:
        """Takes an optimizer's figures from the two stages' runs."""
        tuned = tuning.cells.get(optimizer) if tuning else None
        found = final.cells.get(optimizer) if final else None
        runs = found.best_runs if found else ()
        accurate = bool(runs) and runs[0].valid_accuracy is not None
        shown = found or tuned
        return cls(
            optimizer,
            setting,
            (tuned.edge or ("decay" if tuned.decay_at_edge else "")) if tuned else "",
            tuned.measure(lambda run: run.final_valid_loss) if tuned else None,
            found.measure(lambda run: run.final_valid_loss) if found else None,
            found.measure(_final_accuracy) if found and accurate else None,
            len(runs),
            statistics.median(map(seconds_of_step, shown.runs)) if shown else None,
            grid,
        )


def format_table(experiment: Experiment, size: Size, runs: TaskRuns, ours: list[Ours]) -> str:
    """Returns a page in Markdown: what was run, the table, the sources, and how it differs from the texts."""
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
            Datum(str(one.seeds), one.seeds),
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
    if one.setting is None:
        return NONE
    rate, decay = one.setting
    edge = f" (edge: {one.edge})" if one.edge else ""
    return f"{rate:g}, wd {decay:g}{edge}"


def _mean(value: MeanStd | None) -> Datum:
    return Datum(NONE, None) if value is None else Datum(str(value), value.mean)


def _final_accuracy(run: RunResult) -> float:
    assert run.valid_accuracy is not None
    return float(run.valid_accuracy[-1])
