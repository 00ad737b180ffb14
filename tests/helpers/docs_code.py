"""The Python code of a page of docs/: its fenced blocks, in order, by the tab that they stand in."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

FENCE = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
TAB = re.compile(r'^=== "(.+)"$', re.MULTILINE)


def find_scripts(page: str) -> dict[str, str]:
    """Finds the page's scripts: one for each label of tabs, and one, called "", of what stands in none.

    A reader of a tab goes through the page from top to bottom and sees all blocks of that label.
    """
    scripts: dict[str, list[str]] = {}
    for label, code in _find_blocks(page):
        scripts.setdefault(label, []).append(code)
    return {label: "\n\n".join(blocks) for label, blocks in scripts.items()}


def _find_blocks(page: str) -> Iterator[tuple[str, str]]:
    for fence in FENCE.finditer(page):
        tabs = [tab[1] for tab in TAB.finditer(page, 0, fence.start())] if fence[1] else [""]
        yield tabs[-1], textwrap.dedent(fence[2])
