"""Benchmarking of optimizers: training runs, their statistics, and reports.

`comparison` trains one task with several optimizers in memory; `suite` trains many tasks into a folder of
runs, which `analysis` ranks and `report` renders; `bench` measures the cost of an optimizer step.

    from celo2.evaluate.comparison.compare import CompareConfig, compare
    from celo2.evaluate.comparison.store import save_result

    result = compare(CompareConfig(task="quadratic", optimizers=("celo2", "adamw"), quick=True))
    save_result(result, Path("runs/quadratic"))
"""

from celo2._utils.extras import require

require("jax", "jax", "optax")
