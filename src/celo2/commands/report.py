"""`celo2 report`: what a folder of results says, as a table, a figure and a page."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from celo2.meta.history import RunHistory, is_run, load_history
from celo2.meta.metrics import METRICS_FILE
from celo2.meta.report import make_table, write_report

__all__ = ["ReportCommand", "main"]

PLAIN_WIDTH = 120  # columns, where the output is no terminal

_DESCRIPTION = """\
Draws runs of celo2 meta-train, finished or not: meta-loss of each task, meta-gradient, diverged losses,
resets and skipped iterations, and the probes, also against the meta-loss. Several runs are drawn over each
other, seeds of one recipe say.

examples:
  celo2 report runs/celo2
  celo2 report runs/seed-0 runs/seed-1 runs/seed-2 --out runs/seeds
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """What `celo2 report` takes."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Runs of celo2 meta-train."""
    out: Path | None = None
    """Folder for report.html and report.png; the first run's by default."""


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 report`; returns the exit status: 0, or 2 if there is nothing to report."""
    command = tyro.cli(ReportCommand, prog="celo2 report", description=_DESCRIPTION, args=list(argv))
    try:
        runs = _load(command.folders)
        paths = write_report(runs, command.out or command.folders[0])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    console.print(make_table(runs))
    for kind, path in paths.items():
        console.print(f"{kind:8} {path}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _load(folders: Sequence[Path]) -> list[RunHistory]:
    """The runs in these folders, under the shortest names that tell them apart."""
    if not folders:
        raise ValueError("name at least one run, the --out folder of celo2 meta-train.")
    for folder in folders:
        if not is_run(folder):
            what = f"has no {METRICS_FILE}" if folder.is_dir() else "is not a folder"
            raise ValueError(f"{folder} {what}; expected the --out folder of a celo2 meta-train run.")
    return [load_history(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
