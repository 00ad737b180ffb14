"""Prints the table for docs/tasks.md from the registry of tasks.

    python tools/tasks_table.py

The last column names the stand-in used if this machine has no copy of a published data set.
"""

from __future__ import annotations

import jax

from celo2.evaluate.environment import describe_task
from celo2.tasks.base import SIZES
from celo2.tasks.registry import TASKS, make_task

HEADER = (
    "| name | what it is | parameters: full, small, tiny | batch | published data | stands in |\n"
    "|---|---|---|---:|---|---|"
)


def make_table() -> str:
    """Returns the Markdown table, with a row per task that has sizes."""
    return "\n".join((HEADER, *(_make_row(name) for name, spec in TASKS.items() if spec.sized)))


def _make_row(name: str) -> str:
    full, *others = [describe_task(make_task(name, size=size)) for size in reversed(SIZES)]
    numbers = ", ".join(f"{facts.num_parameters:,}" for facts in (full, *others))
    published = full.stands_in_for or full.dataset
    cells = (
        f"`{name}`",
        TASKS[name].summary,
        numbers,
        f"{full.batch_size:,}",
        published,
        full.dataset if full.stands_in_for else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    print(make_table())
