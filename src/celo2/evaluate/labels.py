"""Names as tables, figures and pages show them: a path of weights may have any characters, and very many."""

from __future__ import annotations

import hashlib
import html

from rich.text import Text

__all__ = ["cell", "figure_label", "markdown_cell", "page_label", "shorten"]

MOST = 64  # characters of a name that is shown


def shorten(name: str, most: int = MOST) -> str:
    """A name of at most so many characters: of a longer one beginning and end, and a hash between them.

    Example:
        >>> shorten("celo2:" + 30 * "x" + "/a.safetensors", 32)
        'celo2:xx…3a7f7640…/a.safetensors'
    """
    if len(name) <= most:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    kept = most - len(digest) - 2
    return f"{name[: kept * 2 // 5]}…{digest}…{name[len(name) - (kept - kept * 2 // 5) :]}"


def cell(text: str, *, bold: bool = False) -> Text:
    """A cell of a terminal's table, in which brackets are no markup."""
    return Text(_printable(text), style="bold" if bold else "")


def figure_label(name: str) -> str:
    """A label of Matplotlib's: no mathematics between dollars, and none that a legend leaves out."""
    label = _printable(shorten(name)).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def page_label(name: str) -> str:
    """A label of Plotly's, which takes tags and entities for what they are in HTML."""
    return html.escape(shorten(name), quote=False)


def markdown_cell(text: str) -> str:
    """A cell of a table in Markdown."""
    return _printable(text).replace("|", r"\|").replace("<", "&lt;")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
