"""`celo2 search`: searches the few parameters of a simple rule by CMA-ES."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from celo2._utils.signals import exit_status
from celo2.commands._arguments import make_registry
from celo2.meta.search import mixture
from celo2.meta.search.run import Generation, SearchConfig, search

_DESCRIPTION = """\
Searches for a rule among those whose direction is a weighted sum of input channels: 15 weights and 7
decays, by CMA-ES. A candidate's value is the loss at the end of short runs against the start's, at each
one's best learning rate, on the tasks of a set. Interrupted, the same command goes on where it was, to the
same result.

examples:
  celo2 search --out runs/search
  celo2 search --variant celo2-base --generations 150 --out runs/search-base
  celo2 probe adam runs/search/weights/celo2-000100.safetensors --set choosing
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """Arguments of `celo2 search`."""

    out: Path
    """Folder of the search: settings, record, weights."""
    variant: str = "celo2"
    """celo2 or celo2-base."""
    generations: int = 100
    """Generations in all; a resumed search continues up to it."""
    set: str = "searching"
    """Declared set of tasks, a name or a TOML file."""
    tasks_per_generation: int = 4
    """Tasks that a generation trains on, in turn; 0: all of the set."""
    population: int = 12
    """Candidates of a generation."""
    spread: float = 0.08
    """Standard deviation of the first candidates."""
    seeds: int = 1
    """Runs of each task, rate and candidate."""
    start: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER …")] = ()
    """Numbers to begin at, such as the vector of an earlier record's last line; none: the Adam-like start."""
    seed: int = 0
    """Seed of the candidates, the tasks' order and the runs."""
    save_every: int = 5
    """Generations between weight files."""


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 search`; returns the exit status: 0, 2 if it cannot run, 130 and more after a signal."""
    command = tyro.cli(
        SearchCommand,
        prog="celo2 search",
        description=_DESCRIPTION,
        args=list(argv),
        registry=make_registry(),
    )
    try:
        names = {field.name for field in dataclasses.fields(SearchConfig)} & vars(command).keys()
        settings: dict[str, Any] = {name: getattr(command, name) for name in names}

        def show(done: Generation) -> None:
            ratios = ", ".join(f"{name} {100 * ratio:+.1f} %" for name, ratio in done.mean.items())
            place = f"generation {done.generation + 1}/{command.generations}"
            print(f"{place}: {ratios}; spread {done.spread:.3f}; {done.seconds:.0f} s")
            print(f"    {mixture.describe(np.asarray(done.vector))}", flush=True)

        search(
            SearchConfig(**settings, task_set=command.set),
            command.out,
            generations=command.generations,
            save_every=command.save_every,
            on_generation=show,
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"interrupted; the same command goes on with {command.out}.", file=sys.stderr)
        return exit_status(stop)
    return 0
