"""Runs, loads and reports suites, for `celo2 compare`, `evaluate` and `report`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from celo2._utils.files import read_object, write_atomic
from celo2._utils.signals import exit_status
from celo2.evaluate.analysis.caveats import caveats, describe_ranking, verdict
from celo2.evaluate.analysis.standings import BASELINE, Standings, arrange
from celo2.evaluate.analysis.summary import OptimizerRow, TaskRow, rank_optimizers, rank_tasks
from celo2.evaluate.progress import ProgressDisplay
from celo2.evaluate.report.tables import brief_task_table, overview_table, summary_table
from celo2.evaluate.suite.local import Machine
from celo2.evaluate.suite.results import RankBy, RunResult
from celo2.evaluate.suite.run import SUITE_FILE, Engine, run_locally, run_suite
from celo2.evaluate.suite.spec import Suite
from celo2.evaluate.suite.store import RunStore, load_results, pack
from celo2.report.kit import shorten
from celo2.report.table import Table, as_rich_table

MARKED = r"(<!-- results{} -->\n).*?(<!-- end -->)"


def is_suite(place: Path) -> bool:
    """Returns whether a path is a folder of `celo2 evaluate` or `compare`, or a file of packed runs."""
    return (place / "runs").is_dir() or (place.is_file() and place.suffix == ".npz")


def load_suites(places: Sequence[Path]) -> list[RunResult]:
    """Loads runs from folders and packed files; damaged ones are reported on standard error.

    Raises:
        ValueError: There are no finished runs.
    """
    results: list[RunResult] = []
    for place in places:
        loaded = load_results(place)
        results += loaded.results
        for reason in loaded.damaged.values():
            print(f"left out: {reason} The command of the folder repeats it.", file=sys.stderr)
    if not results:
        raise ValueError(f"no run in {', '.join(map(str, places))} is finished.")
    return results


def run_and_report(
    suite: Suite,
    out: Path,
    console: Console,
    *,
    machine: Machine,
    engine: Engine = run_locally,
    baseline: str = BASELINE,
    command: str = "celo2 evaluate",
) -> int:
    """Trains the runs of a suite that are missing in the folder, shows progress, and reports the results.

    Args:
        suite: The suite to run.
        out: The folder for the runs and the report.
        console: The console to print to.
        machine: The resources of each group.
        engine: The engine that trains groups.
        baseline: The optimizer that scores are relative to.
        command: The command's name, shown to other processes that want to use the folder.

    Returns:
        The exit status: 0; 1 if a run could not be trained or the report could not be written; 2 for settings
        that the folder or the machine does not allow; 130, 143 or 129 if a signal ended it.
    """
    console.print(describe_suite(suite), highlight=False, markup=False)
    try:
        with ProgressDisplay(console) as display:
            failures = run_suite(
                suite, RunStore(out), machine=machine, engine=engine, on_progress=display, command=command
            )
    except KeyboardInterrupt as stop:
        if len(suite.tasks) == 1:
            _report_partly(suite, out, console, baseline)
        shown = shlex.quote(str(out))
        print(
            f"interrupted; the same command with --out {shown} goes on, and celo2 report {shown} shows what "
            "there is.",
            file=sys.stderr,
        )
        return exit_status(stop)
    except (OSError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    status = 1 if failures else 0
    try:
        report_suite(load_suites([out]), out, console, baseline=baseline, rank_by=suite.rank_by)
    except (ValueError, OSError) as error:  # no run is finished, or the disk is full
        status = 1
        print(f"error: no report: {error} The runs are kept: celo2 report {out}", file=sys.stderr)
    for failure in failures:
        group = failure.group
        print(f"failed: {group.task} with {group.optimizer}: {failure.reason}", file=sys.stderr)
    return status


def _report_partly(suite: Suite, out: Path, console: Console, baseline: str) -> None:
    """Reports the finished runs of an interrupted suite, if there are any."""
    try:
        found = load_results(out).results
        if found:
            report_suite(found, out, console, baseline=baseline, rank_by=suite.rank_by)
    except (OSError, ValueError) as error:
        print(f"error: no report: {error}", file=sys.stderr)


def stored_ranking(places: Sequence[Path]) -> RankBy:
    """Returns the loss that the folders' suites were asked to rank by; "validation" if they differ."""
    found = set()
    for file in (place / SUITE_FILE for place in places):
        record = read_object(file) if file.exists() else {}
        found.add(record.get("rank_by", "validation"))
    return "training" if found == {"training"} else "validation"


def describe_suite(suite: Suite) -> str:
    """Describes the size of a suite on one line: tasks, optimizers, settings, seeds, runs and steps."""
    tasks = suite.tasks[0] if len(suite.tasks) == 1 else f"suite {suite.name}: {len(suite.tasks)} tasks"
    groups = suite.groups(suite.tasks[0])
    counts = {len(group.learning_rates) for group in groups}
    rates = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    rates += " + 2" if any(map(suite.count_refined, groups)) else ""
    decays = f" × {len(suite.weight_decays)} weight decays" if len(suite.weight_decays) > 1 else ""
    lengths = {suite.steps_of.get(task, suite.steps) for task in suite.tasks}
    steps = f"{min(lengths):,}" if len(lengths) == 1 else f"{min(lengths):,} to {max(lengths):,}"
    return (
        f"{tasks} × {len(suite.optimizers)} optimizers × {rates} learning rates{decays} × "
        f"{suite.seeds} seeds: {suite.count_runs()} runs of {steps} steps"
    )


def report_suite(
    results: Sequence[RunResult],
    out: Path,
    console: Console,
    *,
    baseline: str = BASELINE,
    rank_by: RankBy = "validation",
) -> None:
    """Prints the tables, the caveats and the verdict, and writes the report files.

    Args:
        results: The runs of a suite.
        out: The output folder.
        console: The console to print to.
        baseline: The optimizer that scores are relative to.
        rank_by: The loss that optimizers are tuned and ranked by.

    Raises:
        ValueError: A run appears twice.
    """
    from celo2.evaluate.report.html import write_report  # loads plotly and matplotlib

    standings = arrange(results, baseline, rank_by)
    rows, tasks = rank_optimizers(standings), rank_tasks(standings)
    for title, table in _tables(standings, rows, tasks):
        console.print(as_rich_table(table, title, console.width))
    for note in caveats(standings):
        console.print(f"note: {note}", highlight=False, markup=False)
    paths = write_report(results, out, baseline=baseline, rank_by=rank_by)
    for kind, path in paths.items():
        console.print(f"{kind:8} {path}", highlight=False, soft_wrap=True, markup=False)
    console.print(verdict(standings, rows), style="bold", highlight=False, markup=False)


def _tables(
    standings: Standings, rows: Sequence[OptimizerRow], tasks: Sequence[TaskRow]
) -> list[tuple[str, Table]]:
    """Returns the tables for the terminal, with their titles."""
    ranking = f"lowest final {describe_ranking(standings)}"
    if len(standings.tasks) == 1:
        task = standings.tasks[0]
        title = f"{task.label} on {task.facts.dataset}, {task.steps:,} steps, at the rate with the {ranking}"
        return [(title, brief_task_table(tasks))]
    names = [row.optimizer for row in rows]
    baseline = shorten(standings.baseline)
    return [
        (f"final {describe_ranking(standings)} at the best setting", overview_table(tasks, names)),
        (f"scores: {baseline} = 1, higher is better", summary_table(rows, standings.baseline)),
    ]


def write_tables(
    results: Sequence[RunResult],
    page: Path,
    name: str,
    *,
    baseline: str = BASELINE,
    rank_by: RankBy = "validation",
) -> None:
    """Writes the tables between `<!-- results NAME -->` and `<!-- end -->` in a Markdown page.

    Args:
        results: The runs.
        page: The page. Without a mark of this name, the part after `<!-- results -->` is replaced.
        name: Name of the results, for pages with several.
        baseline: Optimizer that scores are relative to.
        rank_by: Loss that optimizers are tuned and ranked by.

    Raises:
        ValueError: The page lacks one of the marks.
    """
    from celo2.evaluate.report.html import as_markdown

    text = page.read_text(encoding="utf-8")
    marks = (MARKED.format(f" {re.escape(name)}"), MARKED.format(""))
    pattern = next((mark for mark in marks if re.search(mark, text, re.DOTALL)), None)
    if pattern is None:
        raise ValueError(
            f"{page} needs a line <!-- results {name} -->, or <!-- results -->, and after it <!-- end -->."
        )
    tables = as_markdown(results, baseline=baseline, rank_by=rank_by)
    text = re.sub(
        pattern, lambda match: f"{match[1]}{tables.rstrip()}\n{match[2]}", text, count=1, flags=re.DOTALL
    )
    write_atomic(page, text.encode())


def write_pack(results: Sequence[RunResult], path: Path) -> None:
    """Packs runs into one file.

    Raises:
        ValueError: The name does not end in .npz.
    """
    if path.suffix != ".npz":
        raise ValueError(f"packed runs need a name that ends in .npz, got {path}.")
    pack(results, path)
