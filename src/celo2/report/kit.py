"""HTML page rendering, mean ± deviation formatting, and labels escaped for each kind of output."""

from __future__ import annotations

import hashlib
import html
import math
from typing import Any, NamedTuple

import jinja2
import numpy as np
from rich.text import Text


def render_page(template: str, **context: Any) -> str:
    """Renders a template of this package; text is escaped, and undefined names are errors.

    Args:
        template: The path inside the package, such as "evaluate/report/report.html.j2".
        **context: The variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("celo2", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


class MeanStd(NamedTuple):
    """Mean and standard deviation over seeds; the deviation of one seed is NaN."""

    mean: float
    std: float

    @classmethod
    def over(cls, values: np.ndarray) -> MeanStd | None:
        """Computes the mean and deviation over the runs of one setting, `(S,)`; None without runs."""
        if values.size == 0:
            return None
        exact = values.astype(np.float64)
        return cls(float(exact.mean()), float(exact.std(ddof=1)) if exact.size > 1 else math.nan)

    def __str__(self) -> str:
        """Formats the mean with four decimals, and the deviation if there is one."""
        if math.isnan(self.std):
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ±{self.std:.4f}"


MOST = 64  # characters of a displayed name


def shorten(name: str, most: int = MOST) -> str:
    """Shortens a name to at most `most` characters: its beginning and end, with a hash between them.

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
    """Returns a cell of a terminal table, in which brackets are not markup."""
    return Text(_printable(text), style="bold" if bold else "")


def figure_label(name: str) -> str:
    """Escapes a label for Matplotlib: dollars are not mathematics, and legends do not hide the label."""
    label = _printable(shorten(name)).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def page_label(name: str) -> str:
    """Escapes a label for Plotly, which interprets HTML tags and entities."""
    return html.escape(shorten(name), quote=False)


def markdown_cell(text: str) -> str:
    """Escapes a cell of a Markdown table."""
    return _printable(text).replace("|", r"\|").replace("<", "&lt;")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
