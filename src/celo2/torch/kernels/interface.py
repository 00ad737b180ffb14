"""The sizes that the kernels of `cpu_numba` and `gpu_triton` support, and the packing of their inputs."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import features
from celo2.torch.weights import Network

CHANNELS = (
    ("grad", 1), ("clipped_grad", 1), ("param", 1), ("momentum", 3), ("rms", 1), ("normalized_momentum", 3),
    ("rsqrt_rms", 1), ("factored_grad", 3), ("normalized_grad", 1), ("factored_momentum", 3),
)  # fmt: skip  # the kernels' order: as in `features.full_channels` with every feature on
NUM_CHANNELS = 18
UNITS = (2, 8)  # the sizes for which kernels are compiled; other networks are padded


def fits(config: RuleConfig) -> bool:
    """Returns whether the kernels support a network and accumulators of these sizes."""
    return (
        config.ff_hidden_size <= UNITS[-1]
        and config.ff_hidden_layers == 2
        and config.mlp_activation == "relu"
        and len(config.initial_momentum_decays) == len(config.initial_adafactor_decays) == 3
        and len(config.initial_rms_decays) == 1
    )


def count_units(config: RuleConfig) -> int:
    """Returns the kernels' number of units for a network."""
    return next(units for units in UNITS if units >= config.ff_hidden_size)


def has_vectors(config: RuleConfig) -> bool:
    """Returns whether kernels read the units' vectors (`three_pass.Units`): some features are vectors."""
    return bool(features.vector_names(config, factored=True))


def pack_weights(network: Network, *, factored: bool) -> np.ndarray:
    """Packs the weights that the kernels use as rows of one number per unit, padded with zeros.

    The rows are the first layer for all channels, `(18, units)`, zero for those that are off; the second
    layer, `(units, units)`; the bias of the first, zero if the units' vectors are read, which include it;
    the bias of the second; the direction's column of the third; and its bias, repeated.
    """
    arrays, config = network.arrays, network.config
    size, units = config.ff_hidden_size, count_units(config)
    packed = np.zeros((NUM_CHANNELS + units + 4, units), np.float32)
    rows = [arrays[name] for name in features.full_names(config, factored=factored)]
    packed[find_places(config, factored=factored), :size] = np.concatenate(rows)
    packed[NUM_CHANNELS : NUM_CHANNELS + size, :size] = arrays["w1"]
    if not has_vectors(config):
        packed[-4, :size] = arrays["b0"]
    packed[-3:-1, :size] = arrays["b1"], arrays["w2"][:, 0]
    packed[-1] = arrays["b2"][0]
    return packed


@functools.cache
def find_places(config: RuleConfig, *, factored: bool) -> list[int]:
    """Returns the positions of the enabled channels among those of the kernels."""
    every = [(feature, index) for feature, count in CHANNELS for index in range(count)]
    return [every.index(channel) for channel in features.full_channels(config, factored=factored)]


def pack_vectors(vectors: Tensor) -> Tensor:
    """Reshapes vectors `(number, ..., rows or 1, cols or 1)` to `(batch, number, size)`."""
    size = vectors.shape[-2] * vectors.shape[-1]
    return vectors.reshape(len(vectors), -1, size).transpose(0, 1).contiguous()


def pack_units(vectors: Tensor, config: RuleConfig) -> Tensor:
    """Packs the contributions to the units of the first layer like `pack_vectors`, padded with zeros."""
    padding = vectors.new_zeros(count_units(config) - len(vectors), *vectors.shape[1:])
    return pack_vectors(torch.cat([vectors, padding]) if len(padding) else vectors)


def batch_shape(tensor: Tensor) -> tuple[int, int, int]:
    """Returns `(batch, rows, cols)` of a tensor of matrices."""
    rows, cols = tensor.shape[-2:]
    return math.prod(tensor.shape[:-2]), rows, cols
