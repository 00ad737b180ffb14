"""The style of all figures, and their output as PNG files and SVG elements.

Figures are drawn without pyplot, so no global state is changed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from celo2._utils.files import write_atomic

INK, PAPER = "#1c2733", "#ffffff"
COLORS = ("#2f7fd6", "#17a673", "#e0662f", "#a05fd0", "#c2961a", "#d6467f", "#6b7a8c")
STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "celo2",
}


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure atomically as a PNG on white."""
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=150, facecolor=PAPER)
    write_atomic(path, stream.getvalue())


def figure_svg(figure: Figure) -> str:
    """Returns the figure as an `<svg>` element for a page: transparent, in the page's text colour."""
    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def scale_losses(axes: Axes) -> None:
    """Sets a log scale with plain numbers as ticks, unless a value is not positive, as in returns."""
    lines = [np.asarray(line.get_ydata(), np.float64) for line in axes.get_lines()]
    if any((line <= 0).any() for line in lines if line.size):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
