"""Stochastic rounding of float32 to bfloat16, which keeps small changes on average.

bfloat16 has eight bits of precision. An accumulator with decay 0.999 moves by a thousandth of its distance
to the gradient, which rounding to nearest would always drop. Rounding up with a probability equal to the
fraction cut off makes the expectation exact (Gupta et al., arXiv 1502.02551, section 3).

The noise is a hash of the step count and the indices of the parameter and the element: no generator is
used, runs repeat exactly, and graphs can be captured. The hash is MurmurHash3's finalizer (A. Appleby).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from celo2.torch.quantization import Quantized, encode

_BITS_CUT = 16  # bits of a float32's significand that are cut off
_LOWER = (1 << _BITS_CUT) - 1
_WORDS = 64  # upper bound on the random words that one element needs in one step


def round_all(
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor | Quantized],
    count: Tensor,
    number: int,
    *,
    elements: Tensor | None = None,
) -> None:
    """Rounds float32 tensors of one shape stochastically to their stored form.

    Args:
        tensors: float32 tensors of one shape; float64 is rounded to float32 first.
        outputs: The bfloat16 tensors, or codes with their scales, to write to; same number and shape.
        count: The step count, a scalar.
        number: The parameter's index.
        elements: The flat index of each element in its parameter, int32; None: the tensors are whole.
    """
    noises = make_noise(tensors[0], len(tensors), count, number, elements=elements)
    for tensor, output, noise in zip(tensors, outputs, noises, strict=True):
        if isinstance(output, Quantized):
            for target, new in zip(output, encode(tensor, noise), strict=True):
                target.copy_(new)
        else:
            output.copy_(round_to_bfloat16(tensor, noise))


def round_to_bfloat16(tensor: Tensor, noise: Tensor) -> Tensor:
    """Rounds a tensor stochastically to bfloat16 values, returned in float32.

    Values that bfloat16 represents exactly are kept, as are infinities and NaN; above 3.39e38, the largest
    bfloat16, the upper neighbour is infinity. float64 is rounded to float32 first.

    Args:
        tensor: Any tensor of floating-point numbers.
        noise: Uniform integers from 0 to 65535, int32, in the tensor's shape. They are added to the bits,
            whose lower sixteen are then cleared.
    """
    tensor = tensor.to(torch.float32)
    bits = (tensor.view(torch.int32) + noise) & ~_LOWER
    return torch.where(torch.isfinite(tensor), bits.view(torch.float32), tensor)


def make_noise(
    like: Tensor, num_tensors: int, count: Tensor, number: int, *, elements: Tensor | None = None
) -> Iterator[Tensor]:
    """Yields uniform integers from 0 to 65535, int32, for each of several tensors of one shape.

    Args:
        like: A tensor of that shape on their device.
        num_tensors: The number of tensors.
        count: The step count, a scalar.
        number: The parameter's index. One hash serves two tensors, sixteen bits each.
        elements: As in `round_all`.
    """
    if elements is None:
        elements = torch.arange(like.numel(), dtype=torch.int32, device=like.device)
    seed = _hash(count.to(elements.device, torch.int32)) + _signed(number * _WORDS)
    for pair in range((num_tensors + 1) // 2):
        words = _hash(elements ^ _hash(seed + pair)).view(like.shape)
        yield (words >> _BITS_CUT) & _LOWER
        if 2 * pair + 1 < num_tensors:
            yield words & _LOWER


def _hash(words: Tensor) -> Tensor:
    """Mixes 32-bit words; sums and products wrap around."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        words = words ^ ((words >> shift) & ((1 << (32 - shift)) - 1))
        words = words * _signed(factor)
    return words


def _signed(number: int) -> int:
    """Returns the signed 32-bit number with the same lower bits."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
