"""The worked examples of `docs/what_updates_what.md` print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "what_updates_what.md"
BLOCK = re.compile(r"^### (.+?)\n.*?```python\n(.*?)```\n\n```text\n(.*?)```", re.MULTILINE | re.DOTALL)
EXAMPLES = BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def test_the_page_has_ten_examples() -> None:
    assert len(EXAMPLES) == 10


@pytest.mark.parametrize(
    ("code", "output"), [example[1:] for example in EXAMPLES], ids=[e[0] for e in EXAMPLES]
)
def test_an_example_prints_what_the_page_says(code: str, output: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(code, PAGE.name, "exec"), {"__name__": "example"})
    assert [line.rstrip() for line in printed.getvalue().splitlines()] == output.splitlines()
