"""The memory of a block, used again for every block, and its channels written into it.

New memory for each intermediate result would cost more than the results: the system clears its pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import features
from celo2.torch.features import Inputs
from celo2.torch.network import Network

__all__ = ["Buffers", "fill"]


class Buffers:
    """Room for one block: its channels, two layers of hidden units, and the reciprocal roots of rms.

    Args:
        size: Elements of the largest block.
        num_channels: Channels of the parameter's shape.
        network: How many units there are.
        like: Dtype and device.
    """

    def __init__(self, size: int, num_channels: int, network: Network, *, like: Tensor):
        config = network.config
        self._num_channels, self._units = num_channels, config.ff_hidden_size
        self._channels = like.new_empty(size * num_channels)
        self._hidden = [like.new_empty(size * self._units) for _ in range(2)]
        self._roots = [like.new_empty(size) for _ in config.initial_rms_decays]

    def channels(self, shape: Sequence[int]) -> Tensor:
        """`(matrices, channels, rows, columns)`."""
        return _view(self._channels, shape, self._num_channels)

    def hidden(self, which: int, shape: Sequence[int]) -> Tensor:
        """`(matrices, units, rows, columns)`, one of two."""
        return _view(self._hidden[which], shape, self._units)

    def roots(self, shape: Sequence[int]) -> list[Tensor]:
        """One `(matrices, rows, columns)` for each rms decay."""
        return [_view(root, shape, 1)[:, 0] for root in self._roots]


def fill(
    channels: Tensor, part: Inputs, names: Sequence[str], buffers: Buffers, config: RuleConfig
) -> Tensor:
    """Writes the channels of some groups, those of `features.compute`, side by side.

    Args:
        channels: Where to, `(matrices, channels, rows, columns)`.
        part: The inputs of one block.
        names: Of `features.full_names`.
        buffers: Room for what several channels share.
        config: Which features are enabled.

    Returns:
        `channels` as `(matrices, channels, elements)`.
    """
    grad, param, (momentum, rms, _, _), factors, raw_factors = part
    roots = buffers.roots(grad.shape)
    for v, root in zip(rms, roots, strict=True):
        torch.add(v, features.RSQRT_EPS, out=root).rsqrt_()
    products: dict[str, list[tuple[Tensor, ...]]] = {
        "grad": [(grad,)],
        "param": [(param,)],
        "momentum": [(m,) for m in momentum],
        "rms": [(v,) for v in rms],
        "normalized_momentum": list(zip(momentum, roots * (len(momentum) // len(roots)), strict=True)),
        "rsqrt_rms": [(root,) for root in roots],
        "factored_grad": [(grad, *pair) for pair in raw_factors],
        "normalized_grad": [(grad, root) for root in roots],
    }
    if config.with_fac_mom_mult:
        products["factored_momentum"] = [(m, *pair) for m, pair in zip(momentum, factors, strict=True)]
    kinds = {name: feature.name for name, feature in config.feature_groups(2)}
    out: Iterator[Tensor] = iter(channels.unbind(1))
    for name in names:
        if kinds[name] == "clipped_grad":
            torch.clamp(grad, -features.CLIPPED_GRAD, features.CLIPPED_GRAD, out=next(out))
            continue
        for first, *rest in products[kinds[name]]:
            _multiply(first, rest, next(out))
    return channels.flatten(2)


def _multiply(first: Tensor, factors: Sequence[Tensor], out: Tensor) -> None:
    if not factors:
        out.copy_(first)
        return
    torch.mul(first, factors[0], out=out)
    for factor in factors[1:]:
        out.mul_(factor)


def _view(buffer: Tensor, shape: Sequence[int], inner: int) -> Tensor:
    matrices, rows, columns = shape
    return buffer[: inner * matrices * rows * columns].view(matrices, inner, rows, columns)
