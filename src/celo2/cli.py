"""The command line: the first word chooses a command, whose module is loaded only then."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from celo2._version import __version__
from celo2.config import nearest_name

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "compare": ("celo2.commands.compare", "train one task with several optimizers, side by side"),
    "meta-train": ("celo2.commands.meta_train", "make a rule; stops and resumes"),
    "weights": ("celo2.commands.weights", "list, inspect, convert, verify and fetch weights"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `celo2 COMMAND …`.

    Args:
        argv: The words after `celo2`; the process's own by default.

    Returns:
        The exit status: 0, or 2 for a call that cannot be carried out.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"celo2 {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(f"celo2: unknown command {words[0]!r}{nearest_name(words[0], COMMANDS)}\n\n{_help()}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(COMMANDS[words[0]][0])
    except ImportError as error:
        print(f"celo2 {words[0]}: {error}", file=sys.stderr)
        return 2
    return command.main(words[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return f"usage: celo2 COMMAND …\n\n{listed}\n\ncelo2 COMMAND --help says more."
