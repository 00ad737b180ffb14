"""Pages of reports: one HTML file each that needs nothing else."""

from __future__ import annotations

from typing import Any

import jinja2

__all__ = ["render_page"]


def render_page(template: str, **context: Any) -> str:
    """Renders a template of this package; text is escaped, and an unknown name is an error.

    Args:
        template: Its path inside the package, "evaluate/report.html.j2" say.
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
