"""Writes tables into pages, between `<!-- NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
_SHOWN = ("commit", "jax", "optax", "processor", "cores", "devices")  # of the machine


def replace_table(page: Path, name: str, table: str) -> None:
    """Replaces the table with a given name in a page."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{page} has no place for {name!r}: it needs <!-- {name} --> and <!-- end -->.")
    page.write_text(pattern.sub(lambda match: match[1] + table + match[2], text), encoding="utf-8")


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table; all columns except the first are right-aligned."""
    lines = ["| " + " | ".join(cells) + " |\n" for cells in (head, *rows)]
    return "".join([lines[0], "|---|" + "---:|" * (len(head) - 1) + "\n", *lines[1:]])


def format_machine(machine: Mapping[str, str]) -> str:
    """Formats the line below a table: the machine, commit and libraries of the measurement."""
    return "\n" + ", ".join(f"{key} {machine[key]}" for key in _SHOWN) + ".\n"
