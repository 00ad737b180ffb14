"""The sizes that the kernels of `cpu_numba` and `gpu_triton` support, and the packing of their inputs."""

from __future__ import annotations

import functools
import math

from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import features
from celo2.torch.weights import Network

CHANNELS = (
    ("grad", 1), ("clipped_grad", 1), ("param", 1), ("momentum", 3), ("rms", 1), ("normalized_momentum", 3),
    ("rsqrt_rms", 1), ("factored_grad", 3), ("normalized_grad", 1), ("factored_momentum", 3),
)  # fmt: skip  # the kernels' order: that of `features.full_channels` with every feature on
NUM_CHANNELS = 18
UNITS = 8


def fits(config: RuleConfig) -> bool:
    """Returns whether the kernels support a network and accumulators of these sizes."""
    return (
        config.ff_hidden_size == UNITS
        and config.ff_hidden_layers == 2
        and config.mlp_activation == "relu"
        and len(config.initial_momentum_decays) == len(config.initial_adafactor_decays) == 3
        and len(config.initial_rms_decays) == 1
    )


def pack_numbers(network: Network, *, factored: bool) -> tuple[float, ...]:
    """Packs the 225 weights of the network that the kernels use.

    These are the first layer's full channels `(18, 8)`, the second layer `(8, 8)` and its bias, and the
    direction's column of the third layer and its bias, one after the other. Weights of features that are
    off, or that vectors do not have (`factored` False), are zero.
    """
    config, weights = network.config, network.numbers
    names = {feature.name: name for name, feature in config.feature_groups(1 + factored)}
    numbers: list[float] = []
    for feature, count in CHANNELS:
        rows = weights[names[feature]] if feature in names else [[0.0] * UNITS] * count
        numbers += [number for row in rows for number in row]
    numbers += [number for row in weights["w1"] for number in row] + weights["b1"]
    return (*numbers, *(row[0] for row in weights["w2"]), weights["b2"][0])


@functools.cache
def find_places(config: RuleConfig, *, factored: bool) -> list[int]:
    """Returns the positions of the enabled channels among those of the kernels."""
    every = [(feature, index) for feature, count in CHANNELS for index in range(count)]
    return [every.index(channel) for channel in features.full_channels(config, factored=factored)]


def pack_vectors(vectors: Tensor) -> Tensor:
    """Reshapes vectors `(number, ..., rows or 1, cols or 1)` to `(batch, number, size)`."""
    size = vectors.shape[-2] * vectors.shape[-1]
    return vectors.reshape(len(vectors), -1, size).transpose(0, 1).contiguous()


def batch_shape(tensor: Tensor) -> tuple[int, int, int]:
    """Returns `(batch, rows, cols)` of a tensor of matrices."""
    rows, cols = tensor.shape[-2:]
    return math.prod(tensor.shape[:-2]), rows, cols
