"""The task families by name: what meta-training can mix."""

from __future__ import annotations

from collections.abc import Mapping

from celo2.tasks.families.autoencoder import AutoencoderFamily
from celo2.tasks.families.convolution import ImageConvFamily
from celo2.tasks.families.mlp import DeepMLPFamily, ImageMLPFamily
from celo2.tasks.families.quadratic import QuadraticFamily
from celo2.tasks.families.recurrent import RecurrentFamily
from celo2.tasks.families.regression import RegressionFamily
from celo2.tasks.families.transformer import TransformerFamily
from celo2.tasks.family import TaskFamily

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
