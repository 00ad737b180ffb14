"""The `celo2` command line: dispatches to a command and imports only its module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from celo2._utils.extras import require
from celo2._utils.signals import exit_status, leave_if_stopped, raising_on_stops
from celo2._utils.streams import outlive_readers
from celo2._version import __version__
from celo2.config import nearest_name


class Command(NamedTuple):
    """A command's module, the extra that it needs (empty for none), and its line in the help."""

    module: str
    extra: str
    line: str


COMMANDS = {
    "bench": Command("celo2.commands.bench", "eval", "measure the time and memory of each optimizer's step"),
    "compare": Command(
        "celo2.commands.compare", "eval", "train one task with several optimizers, side by side"
    ),
    "evaluate": Command(
        "celo2.commands.evaluate", "eval", "run a suite of tasks, every optimizer tuned alike; resumable"
    ),
    "meta-train": Command("celo2.commands.meta_train", "meta", "meta-train a rule; resumable"),
    "probe": Command("celo2.commands.probe", "meta", "compare weights in pairs on held-out tasks"),
    "report": Command(
        "celo2.commands.report", "eval", "report on runs of compare, evaluate or meta-train: page, plots"
    ),
    "search": Command(
        "celo2.commands.search", "meta", "search for a rule of few numbers by CMA-ES; resumable"
    ),
    "weights": Command(
        "celo2.commands.weights", "", "list, inspect, convert, verify, fetch and publish weights"
    ),
}

EXTRA_MODULES = {
    "": (),
    "meta": ("cmaes", "jax", "optax", "orbax", "rich", "tyro", "filelock"),
    "eval": ("jax", "optax", "rich", "tyro", "filelock", "matplotlib", "jinja2"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `celo2 COMMAND …`.

    Args:
        argv: The words after `celo2`; by default the process's own.

    Returns:
        The exit status: 0; 1 for a run that stopped itself; 2 for an invalid call; 130, 143 or 129 if
        ended by Ctrl-C, SIGTERM or SIGHUP.
    """
    if argv is not None:
        return _run(list(argv))
    outlive_readers()
    with raising_on_stops():
        status = _run(sys.argv[1:])
        leave_if_stopped(status)
    return status


def _run(words: list[str]) -> int:
    try:
        return _choose(words)
    except KeyboardInterrupt as stop:
        name = f"celo2 {words[0]}" if words and words[0] in COMMANDS else "celo2"
        print(f"{name}: {str(stop) or 'interrupted.'}", file=sys.stderr)
        return exit_status(stop)


def _choose(words: list[str]) -> int:
    """Runs the command named by the first word."""
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"celo2 {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(
            f"celo2: unknown command {words[0]!r}{nearest_name(words[0], COMMANDS)}\n\n{_help()}",
            file=sys.stderr,
        )
        return 2
    command = COMMANDS[words[0]]
    try:
        require(command.extra, *EXTRA_MODULES[command.extra])
    except ImportError as error:
        print(f"celo2 {words[0]}: {error}", file=sys.stderr)
        return 2
    return importlib.import_module(command.module).main(words[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {line}" for name, (_, _, line) in COMMANDS.items())
    return f"usage: celo2 COMMAND …\n\n{listed}\n\ncelo2 COMMAND --help says more."
