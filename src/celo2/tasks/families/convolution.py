"""Small convolutional networks on images."""

from __future__ import annotations

import dataclasses

from jax import Array

from celo2.tasks.base import Batch, Params
from celo2.tasks.convolution import compute_conv_net, init_conv_net
from celo2.tasks.families._images import SIDE, ImageFamily
from celo2.tasks.layers import cross_entropy

__all__ = ["ImageConvFamily"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConvFamily(ImageFamily):
    """Two strided 3 × 3 convolutions, the mean over positions and a linear head; 1,418 parameters.

    Attributes:
        channels: Output channels of each convolution.
    """

    channels: tuple[int, ...] = (8, 16)

    def init_params(self, key: Array) -> Params:
        """Untrained network."""
        return init_conv_net(key, self.channels)

    def compute_loss(self, params: Params, batch: Batch) -> Array:
        """Mean cross-entropy, in nats."""
        return cross_entropy(compute_conv_net(params, batch["x"].reshape(-1, SIDE, SIDE)), batch["y"])
