"""`celo2 search`: searches the few parameters of a simple rule by CMA-ES."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from celo2._utils.signals import exit_status
from celo2.commands._arguments import make_registry, peek, take_part
from celo2.meta.search import mixture
from celo2.meta.search.run import Generation, SearchConfig, search

_DESCRIPTION = """\
Searches for a rule among those whose direction is a weighted sum of input channels: 15 weights and 7
decays, by CMA-ES; with --bends, two more numbers bend the sum where it is large, and with --revives, four
more push the weights of dead units. A candidate is judged by the loss at the end of short runs relative to
the start's, each at its best learning rate, on the tasks of a set. If interrupted, the same command
continues, to the same result.

examples:
  celo2 search --out runs/search
  celo2 search --variant celo2-base --generations 150 --out runs/search-base
  celo2 search --bends --adamw-lr-scale 5 --gradient-scales 0.01 10 --out runs/search-plus
  celo2 search --eigenbasis-every 10 --adamw-lr-scale 5 --out runs/search-eigenbasis
  celo2 search --config runs/search/config.json --seed 1 --out runs/again
  celo2 search --config recipes/search/celo2.json --generations 56 --out runs/shipped
  celo2 search --revives --set searching-relu --out runs/search-relu
  celo2 probe start:adam runs/search/weights/celo2-000100.safetensors --set choosing
  celo2 probe celo2-eigenbasis celo2-eigenbasis:runs/search-eigenbasis/weights/celo2-000100.safetensors
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SearchFlags(SearchConfig):
    """Settings of a search, as flags."""

    task_set: Annotated[str, tyro.conf.arg(name="set")] = SearchConfig.task_set
    start: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER …")] = SearchConfig.start


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """Arguments of `celo2 search`: the settings of a search and its length.

    Attributes:
        out: Folder of the search: settings, record, weights.
        config: Search to repeat, its config.json; other options on the command line override it.
        generations: Total number of generations; a resumed search continues up to it.
        save_every: Number of generations between weight files.
    """

    out: Path
    config: Path | None = None
    generations: int = 100
    save_every: int = 5
    settings: Annotated[_SearchFlags, tyro.conf.arg(name="")]


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 search`; returns the exit status: 0, 2 if it cannot run, 130 and more after a signal."""
    try:
        command = _parse(argv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def show(done: Generation) -> None:
        ratios = ", ".join(f"{name} {100 * ratio:+.1f} %" for name, ratio in done.mean.items())
        place = f"generation {done.generation + 1}/{command.generations}"
        print(f"{place}: {ratios}; spread {done.spread:.3f}; {done.seconds:.0f} s")
        print(f"    {mixture.describe(np.asarray(done.vector))}", flush=True)

    try:
        search(
            take_part(command.settings, SearchConfig),
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


def _parse(argv: Sequence[str]) -> SearchCommand:
    """Parses the command, with the settings of `--config` as defaults.

    Raises:
        OSError, ValueError: The file cannot be read, or a setting is out of its range.
    """
    file = peek(argv).config
    settings = _SearchFlags(**vars(SearchConfig.load(file) if file else SearchConfig()))
    command = tyro.cli(
        SearchCommand,
        default=SearchCommand(out=tyro.MISSING, settings=settings),
        prog="celo2 search",
        description=_DESCRIPTION,
        args=list(argv),
        registry=make_registry(),
    )
    if command.settings.task_set == settings.task_set:
        return command
    other_set = dataclasses.replace(command.settings, set_digest="")
    return dataclasses.replace(command, settings=other_set)
