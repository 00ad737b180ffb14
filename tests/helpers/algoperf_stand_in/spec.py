"""Names that submissions take from `algoperf.spec`: enumerations, and the base of workloads."""

from __future__ import annotations

import enum
from typing import Any


class ForwardPassMode(enum.Enum):
    TRAIN = 0
    EVAL = 1


class LossType(enum.Enum):
    SOFTMAX_CROSS_ENTROPY = 0


class ParameterType(enum.Enum):
    WEIGHT = 0
    BIAS = 1
    CONV_WEIGHT = 2
    BATCH_NORM_SCALE = 3
    BATCH_NORM_BIAS = 4
    LAYER_NORM_SCALE = 5
    LAYER_NORM_BIAS = 6
    EMBEDDING = 7
    ATTENTION_Q = 8
    ATTENTION_K = 9
    ATTENTION_V = 10
    ATTENTION_OUT = 11
    ATTENTION_QKV = 12
    ATTENTION_KV = 13
    ATTENTION_BIAS = 14


class Workload:
    """What submissions may ask of a workload; `model_fn`, `loss_fn`, `init_model_fn` are the subclass's."""

    step_hint = 40
    loss_type = LossType.SOFTMAX_CROSS_ENTROPY

    def __init__(self) -> None:
        self.metrics_logger: Any = None
        self.model_params_types: Any = None

    def attach_metrics_logger(self, metrics_logger: Any) -> None:
        self.metrics_logger = metrics_logger

    def is_output_params(self, param_key: str) -> bool | None:
        """Says whether a key belongs to the output layer; None, as in some workloads, says nothing."""
        del param_key


# Parts of a parameter's name and the type they give, the first that fits; "" for what ends in it.
_BY_NAME = (
    ("norm", "scale", "NORM_SCALE"),
    ("norm", "weight", "NORM_SCALE"),
    ("norm", "bias", "NORM_BIAS"),
    ("embed", "", "EMBEDDING"),
    ("attention", "bias", "ATTENTION_BIAS"),
    ("attention", "in_proj", "ATTENTION_QKV"),
    ("query", "", "ATTENTION_Q"),
    ("key", "", "ATTENTION_K"),
    ("value", "", "ATTENTION_V"),
    ("attention", "out", "ATTENTION_OUT"),
    ("", "bias", "BIAS"),
    ("conv", "", "CONV_WEIGHT"),
    ("", "", "WEIGHT"),
)


def find_type(name: str) -> ParameterType:
    """Returns the type of a parameter by its full name, in lower case."""
    kind = next(kind for first, second, kind in _BY_NAME if first in name and second in name)
    if kind.startswith("NORM"):
        kind = ("BATCH_" if "batch" in name else "LAYER_") + kind
    return ParameterType[kind]


class Logger:
    """A metrics logger that remembers what it was given."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}

    def append_scalar_metrics(self, metrics: dict[str, float], global_step: int) -> None:
        self.metrics[global_step] = metrics
