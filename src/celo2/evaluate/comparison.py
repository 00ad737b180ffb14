"""Compares optimizers on one task, each tuned over equally many learning rates: a suite of one task.

Every optimizer gets the same seeds, initial parameters, batches and number of learning rates, and the same
schedule unless it was designed for another. The rate with the lowest final loss (mean over the seeds)
represents it. Results, storage and reports are those of suites.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from celo2._utils.checks import check_count, check_devices, check_memory, check_rates
from celo2.baselines import qualified_name, sets_own_rate
from celo2.config import nearest_name
from celo2.constants import FLOAT32_MAX
from celo2.evaluate.analysis.standings import default_baseline
from celo2.evaluate.suite.local import Machine
from celo2.evaluate.suite.results import RankBy, RunResult
from celo2.evaluate.suite.run import OnSuiteProgress, run_suite, train_in_memory
from celo2.evaluate.suite.spec import ALL, Suite, qualify_keys
from celo2.evaluate.suite.store import RunStore

FULL = {"num_learning_rates": 7, "seeds": 3, "steps": 200}
QUICK = {"num_learning_rates": 4, "seeds": 1, "steps": 100}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of a comparison.

    Attributes:
        task: Name of the task (`celo2.tasks.registry.TASKS`), with `@tiny` or `@small` where it has sizes.
        optimizers: Names (`celo2.baselines.OPTIMIZERS`), `celo2:PATH` for other weights of the rule, or
            `celo:PATH` and so on for its predecessors (`celo2.zoo`); also paths and hub repositories of
            weights, which are given such names, here and among the learning rates.
        learning_rates: Peak learning rates by optimizer, or for "all" of them; optimizers without an entry
            use their default grid.
        num_learning_rates: Values in each default grid; 0 means 7, or 4 with `quick`.
        seeds: Runs of each learning rate; 0 means 3, or 1 with `quick`.
        steps: Length of a run; 0 means 200, or 100 with `quick`.
        first_seed: The seeds are this one and the ones after it.
        weight_decay: Decoupled weight decay, multiplied by the learning rate; the same for every optimizer.
        refine: Whether each optimizer gets two more learning rates, between its best and the neighbours or
            beyond the edge of its default grid.
        quick: Fewer learning rates, seeds and steps and no refinement, for a first look.
        devices: Number of local devices to use; 0 is all of them.
        max_memory: GiB that the runs trained together may use.
        rank_by: The loss by which optimizers are tuned and ranked; a task without
            validation data uses the training loss.

    Raises:
        ValueError: A setting is out of its range, or a name is unknown or appears twice.
        OSError, ImportError: Weights given by a path or repository cannot be read.
    """

    task: str = "fashion-mlp"
    optimizers: tuple[str, ...] = ("celo2", "celo2-base", "adamw", "muon")
    learning_rates: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    num_learning_rates: int = 0
    seeds: int = 0
    steps: int = 0
    first_seed: int = 0
    weight_decay: float = 0.0
    refine: bool = True
    quick: bool = False
    devices: int = 0
    max_memory: float = 4.0
    rank_by: RankBy = "validation"

    def __post_init__(self) -> None:
        """Checks the ranges and resolves the defaults that depend on `quick`."""
        object.__setattr__(self, "optimizers", tuple(map(qualified_name, self.optimizers)))
        object.__setattr__(self, "learning_rates", qualify_keys(self.learning_rates))
        for name in ("num_learning_rates", "seeds", "steps"):
            check_count(name, getattr(self, name))
        if not 0 <= self.weight_decay <= FLOAT32_MAX:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}.")
        check_devices(self.devices)
        check_memory(self.max_memory)
        for name, value in (QUICK if self.quick else FULL).items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        for name in self.optimizers:
            self._check_own_rate(name)
        for name, rates in self.learning_rates.items():
            check_rates(f"the learning rates of {name}", rates)
            if name not in (*self.optimizers, ALL):
                raise ValueError(
                    f"there are learning rates for {name!r}, which is not among the optimizers "
                    f"({', '.join(self.optimizers)}){nearest_name(name, self.optimizers)}"
                )
        self.suite()

    def _check_own_rate(self, name: str) -> None:
        """Raises a ValueError for a rate or weight decay of an optimizer without a learning rate."""
        if not sets_own_rate(name):
            return
        if name in self.learning_rates:
            raise ValueError(f"{name} sets its own step sizes; leave out its learning rates.")
        if self.weight_decay:
            raise ValueError(
                f"weight decay is measured by the learning rate, and {name} has none; leave out one of them."
            )

    def suite(self) -> Suite:
        """Returns the suite with this one task.

        Raises:
            ValueError: A setting is out of its range, or a name is unknown or appears twice.
        """
        return Suite(
            name=self.task,
            tasks=(self.task,),
            optimizers=self.optimizers,
            num_learning_rates=self.num_learning_rates,
            weight_decays=(self.weight_decay,),
            seeds=self.seeds,
            first_seed=self.first_seed,
            steps=self.steps,
            refine=self.refine and not self.quick,
            rank_by=self.rank_by,
        ).with_rates(self.learning_rates)

    @property
    def machine(self) -> Machine:
        """The resources; steps are timed alone."""
        return Machine(self.devices, self.max_memory * 2**30, time_alone=True)

    @property
    def baseline(self) -> str:
        """The optimizer to which times and scores are relative (`default_baseline`)."""
        return default_baseline(self.optimizers)


def compare(
    config: CompareConfig, *, folder: Path | None = None, on_progress: OnSuiteProgress | None = None
) -> list[RunResult]:
    """Runs a comparison and returns its runs, for `write_report` and `arrange`.

    Args:
        config: The settings.
        folder: The folder of the runs, from which the same call resumes after an interrupt; None: they are
            kept in memory and lost on an interrupt.
        on_progress: Called at the start and as training proceeds.

    Raises:
        RuntimeError: An optimizer or the task failed; with a folder, the others' runs are saved.
        ValueError: The folder contains runs of another length or with other weights.

    Example:
        ```python
        from pathlib import Path

        from celo2.evaluate import CompareConfig, compare, write_report

        results = compare(CompareConfig(task="quadratic", optimizers=("celo2", "adamw"), quick=True))
        write_report(results, Path("runs/quadratic"))
        ```
    """
    suite = config.suite()
    if folder is None:
        results, failures = train_in_memory(suite, machine=config.machine, on_progress=on_progress)
    else:
        store = RunStore(folder)
        failures = run_suite(
            suite, store, machine=config.machine, on_progress=on_progress, command="celo2 compare"
        )
        results = store.load().results
    if failures:
        raise RuntimeError("; ".join(f"{failure.group.optimizer}: {failure.reason}" for failure in failures))
    return results
