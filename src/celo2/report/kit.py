"""Pages of reports: one HTML file each that needs nothing else."""

from __future__ import annotations

import hashlib
import html
import math
from typing import Any, NamedTuple

import jinja2
import numpy as np
from rich.text import Text


def render_page(template: str, **context: Any) -> str:
    """Renders a template of this package; text is escaped, and an unknown name is an error.

    Args:
        template: Its path inside the package, "evaluate/comparison/report.html.j2" say.
        **context: What it shows.
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
        """Of the runs of one setting, `(S,)`; None where there are none."""
        if values.size == 0:
            return None
        exact = values.astype(np.float64)
        return cls(float(exact.mean()), float(exact.std(ddof=1)) if exact.size > 1 else math.nan)

    def __str__(self) -> str:
        """Four digits after the point, the deviation where there is one."""
        if math.isnan(self.std):
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ±{self.std:.4f}"


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
