"""Probes: paired comparisons of weights on networks that meta-training does not train.

`measure` trains the tasks of a declared set at rates around each one's best; `paired` compares two candidates
seed by seed, with intervals; `log` stores the probes of a meta-training run and its best weights.
"""

from celo2.meta.probe.log import ProbeLog
from celo2.meta.probe.measure import (
    Probe,
    ProbeConfig,
    TaskRecord,
    compute_score,
    describe,
    describe_task,
)
from celo2.meta.probe.paired import Comparison, Row, compare

__all__ = [
    "Comparison",
    "Probe",
    "ProbeConfig",
    "ProbeLog",
    "Row",
    "TaskRecord",
    "compare",
    "compute_score",
    "describe",
    "describe_task",
]
