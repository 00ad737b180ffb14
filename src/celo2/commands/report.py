"""`celo2 report`: reports a folder of results in tables, figures and a page."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from celo2._utils.checks import check_out_file, check_out_folder
from celo2.commands._arguments import make_registry
from celo2.commands._suite_report import (
    is_suite,
    load_suites,
    report_suite,
    stored_ranking,
    write_pack,
    write_tables,
)
from celo2.config import nearest_name
from celo2.evaluate.analysis.standings import default_baseline
from celo2.evaluate.suite.run import SUITE_FILE
from celo2.meta.report.history import RunHistory, is_run, load_history
from celo2.meta.report.html import make_table, write_report
from celo2.meta.run.metrics import METRICS_FILE

_EXPECTED = "the --out folder of celo2 compare, evaluate or meta-train, or a packed NAME.npz"
PLAIN_WIDTH = 120  # columns if the output is not a terminal

_DESCRIPTION = """\
Reports on runs, finished or not.

For celo2 compare and celo2 evaluate: scores, tables, curves and the sensitivity to the learning rate, as a
page with interactive figures, as pictures and as CSV files.

For celo2 meta-train: the meta-loss of each task, the meta-gradient, diverged losses, resets and skipped
iterations, and the probes, also plotted against the meta-loss. Several runs, such as the seeds of one recipe,
are drawn in the same figures.

examples:
  celo2 report runs/tiny
  celo2 report runs/tiny --baseline muon --out report
  celo2 report runs/tiny --pack results/tiny.npz --markdown docs/results.md
  celo2 report runs/celo2
  celo2 report runs/seed-0 runs/seed-1 runs/seed-2 --out runs/seeds
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Arguments of `celo2 report`."""

    folders: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(help_behavior_hint="(at least one)")
    ]
    """Output folders of celo2 compare or evaluate, or their packed runs; or runs of celo2 meta-train."""
    out: Path | None = None
    """Folder for the report; by default the first run's."""
    baseline: str = ""
    """For suites: the optimizer that scores are relative to; by default adamw, or else the first."""
    rank_by: Literal["stored", "validation", "training"] = "stored"
    """For suites: the loss that optimizers are tuned and ranked by; "stored": as when the suite was run."""
    markdown: Path | None = None
    """For suites: a Markdown page in which the tables replace the part from `<!-- results NAME -->` (the name
    of the first folder or file) or `<!-- results -->` to `<!-- end -->`."""
    pack: Path | None = None
    """For suites: a file NAME.npz for all the runs, which celo2 report reads like the folder."""


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 report`; returns the exit status: 0, or 2 if there is nothing to report."""
    command = tyro.cli(
        ReportCommand,
        prog="celo2 report",
        description=_DESCRIPTION,
        args=list(argv),
        registry=make_registry(),
    )
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    try:
        for file in filter(None, (command.pack, command.markdown)):
            check_out_file(file)
        if command.out:
            check_out_folder(command.out)
        if command.folders and all(map(is_suite, command.folders)):
            _report_suites(command, console)
        else:
            _report_meta_training(command, console)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report_suites(command: ReportCommand, console: Console) -> None:
    results, first = load_suites(command.folders), command.folders[0]
    names = sorted({run.spec.optimizer for run in results})
    if command.baseline not in ("", *names):
        raise ValueError(
            f"there are no runs of {command.baseline!r}{nearest_name(command.baseline, names)} "
            f"There are {', '.join(names)}."
        )
    baseline = command.baseline or default_baseline(names)
    rank_by = stored_ranking(command.folders) if command.rank_by == "stored" else command.rank_by
    if command.pack:
        write_pack(results, command.pack)
    if command.markdown:
        write_tables(results, command.markdown, first.stem, baseline=baseline, rank_by=rank_by)
    out = command.out or (first if first.is_dir() else first.parent)
    report_suite(results, out, console, baseline=baseline, rank_by=rank_by)


def _report_meta_training(command: ReportCommand, console: Console) -> None:
    runs = _load(command.folders)
    for fault in (fault for run in runs for fault in run.faults):
        print(f"note: {fault}", file=sys.stderr)
    paths = write_report(runs, command.out or command.folders[0])
    console.print(make_table(runs))
    for kind, path in paths.items():
        console.print(f"{kind:8} {path}", highlight=False, soft_wrap=True, markup=False)


def _load(folders: Sequence[Path]) -> list[RunHistory]:
    """Loads the runs in these folders, with the shortest unique names."""
    if not folders:
        raise ValueError(f"name at least one folder: {_EXPECTED}.")
    for folder in folders:
        if not is_run(folder):
            what = f"has neither {SUITE_FILE} nor {METRICS_FILE}" if folder.is_dir() else "is not a folder"
            raise ValueError(f"{folder} {what}; expected {_EXPECTED}.")
    return [load_history(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
