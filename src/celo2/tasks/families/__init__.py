"""Task families by name, which meta-training can mix."""

from __future__ import annotations

from collections.abc import Mapping

from celo2.tasks.families.base import TaskFamily
from celo2.tasks.families.images import (
    AutoencoderFamily,
    DeepMLPFamily,
    ImageConvFamily,
    ImageMLPFamily,
)
from celo2.tasks.families.quadratic import QuadraticFamily
from celo2.tasks.families.regression import RegressionFamily
from celo2.tasks.families.text import RecurrentFamily, TransformerFamily

__all__ = ["FAMILIES"]

FAMILIES: Mapping[str, type[TaskFamily]] = {
    "mlp": ImageMLPFamily,
    "deep-mlp": DeepMLPFamily,
    "conv": ImageConvFamily,
    "autoencoder": AutoencoderFamily,
    "transformer": TransformerFamily,
    "rnn": RecurrentFamily,
    "regression": RegressionFamily,
    "quadratic": QuadraticFamily,
}
