"""Benchmarking of optimizers: training runs, their statistics, and reports.

`compare` trains one task with several optimizers, and `run_suite` many tasks into a folder of runs;
`arrange` groups runs by task and optimizer; `write_report` renders them.

    from celo2.evaluate import CompareConfig, compare, write_report

    results = compare(CompareConfig(task="quadratic", optimizers=("celo2", "adamw"), quick=True))
    write_report(results, Path("runs/quadratic"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celo2._utils.extras import require
from celo2._utils.lazy import import_name

require("jax", "jax", "optax")

if TYPE_CHECKING:
    from celo2.evaluate.analysis.standings import arrange
    from celo2.evaluate.comparison import CompareConfig, compare
    from celo2.evaluate.report.html import write_report
    from celo2.evaluate.suite.run import run_suite
    from celo2.evaluate.suite.spec import Suite, load_suite
    from celo2.evaluate.suite.store import RunStore, load_results

__all__ = [
    "CompareConfig",
    "RunStore",
    "Suite",
    "arrange",
    "compare",
    "load_results",
    "load_suite",
    "run_suite",
    "write_report",
]

_HOME = {
    "CompareConfig": "celo2.evaluate.comparison",
    "RunStore": "celo2.evaluate.suite.store",
    "Suite": "celo2.evaluate.suite.spec",
    "arrange": "celo2.evaluate.analysis.standings",
    "compare": "celo2.evaluate.comparison",
    "load_results": "celo2.evaluate.suite.store",
    "load_suite": "celo2.evaluate.suite.spec",
    "run_suite": "celo2.evaluate.suite.run",
    "write_report": "celo2.evaluate.report.html",
}


def __getattr__(name: str) -> Any:
    return import_name(__name__, _HOME, name)
