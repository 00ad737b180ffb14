"""float32 → bfloat16 by stochastic rounding, so that small changes are kept on average.

A bfloat16 has eight bits of precision: an accumulator with decay 0.999 moves by a thousandth of its
distance to the gradient, which rounding to nearest would drop for ever. Rounded up with the
probability of what is cut off, the expectation is exact (Gupta et al., arXiv 1502.02551, section 3).

The noise is a hash of the step's number, the parameter's and the element's: no generator is touched,
a run repeats exactly, and a graph can be captured. The hash is MurmurHash3's finalizer (A. Appleby).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BITS_CUT = 16  # of a float32's significand
_LOWER = (1 << _BITS_CUT) - 1
_WORDS = 64  # an upper bound of the random words that one element needs in one step


def round_all(
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor],
    count: Tensor,
    number: int,
    *,
    elements: Tensor | None = None,
) -> None:
    """Rounds float32 tensors of one shape into bfloat16 ones, each element up or down by its nearness.

    A value that bfloat16 holds is kept, and so are infinities and NaN; above 3.39e38, the largest
    bfloat16, the upper neighbour is infinity.

    Args:
        tensors: Of one shape, float32; float64 is rounded to float32 first.
        outputs: Where to, as many, bfloat16, of the same shape.
        count: The step's number, a scalar.
        number: The parameter's number. One hash serves two tensors, sixteen bits each.
        elements: The number of each element in its parameter, flat, int32; None: they are all of it.
    """
    if elements is None:
        elements = torch.arange(tensors[0].numel(), dtype=torch.int32, device=tensors[0].device)
    seed = _hash(count.to(elements.device, torch.int32)) + _signed(number * _WORDS)
    for pair in range(0, len(tensors), 2):
        words = _hash(elements ^ _hash(seed + pair // 2)).view(tensors[0].shape)
        halves = ((words >> _BITS_CUT) & _LOWER, words & _LOWER)
        for tensor, output, noise in zip(
            tensors[pair : pair + 2], outputs[pair : pair + 2], halves, strict=False
        ):
            output.copy_(_round(tensor.to(torch.float32), noise))


def _round(tensor: Tensor, noise: Tensor) -> Tensor:
    """Adds noise in [0, 2¹⁶) to the bits and clears the lower sixteen."""
    bits = (tensor.view(torch.int32) + noise) & ~_LOWER
    return torch.where(torch.isfinite(tensor), bits.view(torch.float32), tensor)


def _hash(words: Tensor) -> Tensor:
    """Mixes 32-bit words; sums and products wrap."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        words = words ^ ((words >> shift) & ((1 << (32 - shift)) - 1))
        words = words * _signed(factor)
    return words


def _signed(number: int) -> int:
    """The signed 32-bit number with the same lower bits."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
