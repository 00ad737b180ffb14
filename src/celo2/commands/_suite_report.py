"""Loading and reporting of a suite's runs, shared by `celo2 evaluate` and `celo2 report`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from celo2._utils.files import write_atomic
from celo2.evaluate.analysis.caveats import caveats
from celo2.evaluate.analysis.standings import BASELINE, arrange
from celo2.evaluate.analysis.summary import rank_optimizers, rank_tasks
from celo2.evaluate.report.tables import Table as SuiteTable
from celo2.evaluate.report.tables import overview_table, summary_table
from celo2.evaluate.suite.results import RunResult
from celo2.evaluate.suite.store import load_results, pack
from celo2.report.kit import cell, shorten

MARKED = re.compile(r"(<!-- results -->\n).*?(<!-- end -->)", re.DOTALL)


def is_suite(place: Path) -> bool:
    """Returns whether a path is a folder of `celo2 evaluate`, or a file of packed runs."""
    return (place / "runs").is_dir() or (place.is_file() and place.suffix == ".npz")


def load_suites(places: Sequence[Path]) -> list[RunResult]:
    """Loads the runs of folders and packed files; damaged ones are reported on standard error.

    Raises:
        ValueError: There are no finished runs.
    """
    results: list[RunResult] = []
    for place in places:
        loaded = load_results(place)
        results += loaded.results
        for reason in loaded.damaged.values():
            print(f"left out: {reason} The same celo2 evaluate repeats it.", file=sys.stderr)
    if not results:
        raise ValueError(f"no run in {', '.join(map(str, places))} is finished.")
    return results


def report_suite(
    results: Sequence[RunResult], out: Path, console: Console, *, baseline: str = BASELINE
) -> None:
    """Prints the tables and writes the report's files.

    Args:
        results: The runs of a suite.
        out: The output folder.
        console: The console to print to.
        baseline: The optimizer that scores are relative to.

    Raises:
        ValueError: A run appears twice.
    """
    from celo2.evaluate.report.html import (
        write_suite_report,  # loads plotly and matplotlib
    )

    standings = arrange(results, baseline)
    rows, tasks = rank_optimizers(standings), rank_tasks(standings)
    names = [row.optimizer for row in rows]
    console.print(_as_rich(overview_table(tasks, names), "final training loss at the best setting"))
    console.print(
        _as_rich(summary_table(rows, baseline), f"scores: {shorten(baseline)} = 1, higher is better")
    )
    for caveat in caveats(standings):
        console.print(f"note: {caveat}", highlight=False, markup=False)
    paths = write_suite_report(results, out, baseline=baseline)
    for kind, path in paths.items():
        console.print(f"{kind:8} {path}", highlight=False, soft_wrap=True, markup=False)


def write_tables(results: Sequence[RunResult], page: Path, *, baseline: str = BASELINE) -> None:
    """Replaces the part of a Markdown page between `<!-- results -->` and `<!-- end -->` by the tables.

    Raises:
        ValueError: The page lacks one of the marks.
    """
    from celo2.evaluate.report.html import as_markdown

    text = page.read_text(encoding="utf-8")
    if not MARKED.search(text):
        raise ValueError(f"{page} needs a line <!-- results --> and, after it, one <!-- end -->.")
    tables = as_markdown(results, baseline=baseline)
    text = MARKED.sub(lambda match: f"{match[1]}{tables.rstrip()}\n{match[2]}", text)
    write_atomic(page, text.encode())


def write_pack(results: Sequence[RunResult], path: Path) -> None:
    """Packs runs into one file.

    Raises:
        ValueError: The name does not end in .npz.
    """
    if path.suffix != ".npz":
        raise ValueError(f"packed runs need a name that ends in .npz, got {path}.")
    pack(results, path)


def _as_rich(table: SuiteTable, title: str) -> Table:
    shown = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(table.columns):
        shown.add_column(cell(column), justify="right" if index else "left", no_wrap=index == 0)
    for row in table.rows:
        shown.add_row(*(cell(datum.text, bold=datum.best) for datum in row))
    return shown
