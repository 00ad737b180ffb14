"""Momenta in one byte per parameter: a sign and the root of the magnitude relative to the row's largest.

    s = max |x| of a row,    q = round(127 √(|x| / s)),    x ≈ sign(x) (q / 127)² s

The twin of `celo2.jax.quantization`, with the same codes; it explains the root, the stochastic rounding, and
why second moments stay bfloat16. A row is the last axis of the parameter's own shape, so processes that hold
a shard must hold whole rows.

Block-wise codes with a scale: 8-bit optimizers, arXiv 2110.02861, section 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from celo2.constants import CODE_LEVELS, NOISE_VALUES

# The step of the roots, used as a factor: XLA divides by constants this way, and true division would differ
# in the last place.
_STEP = 1 / CODE_LEVELS


class Quantized(NamedTuple):
    """Tensor stored in one byte per element.

    Attributes:
        codes: The signed codes from -127 to 127, int8, in the tensor's shape.
        scale: The largest magnitude of each row, float32, in the tensor's shape with the last axis reduced
            to 1.
    """

    codes: Tensor
    scale: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which elements are stored: int8."""
        return self.codes.dtype


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the scales of a tensor's rows; a scalar is one row."""
    return (*shape[:-1], 1) if shape else ()


def encode(tensor: Tensor, noise: Tensor) -> Quantized:
    """Rounds a tensor stochastically to codes; values that codes represent exactly are kept.

    Args:
        tensor: Any tensor of floating-point numbers; rows with an infinity or NaN are decoded as NaN.
        noise: Uniform integers from 0 to 65535, in the tensor's shape.
    """
    tensor = tensor.to(torch.float32)
    magnitudes = tensor.abs()
    scale = _largest(magnitudes)
    share = (magnitudes / scale).masked_fill_(~((scale > 0) & torch.isfinite(scale)), 0.0)
    low = share.sqrt().mul_(CODE_LEVELS).floor_()
    below, above = ((low + step).mul_(_STEP).square_() for step in (0, 1))
    chance = share.sub_(below).div_(above.sub_(below)).mul_(NOISE_VALUES)
    codes = low.add_(chance > noise.to(torch.float32) + 0.5).clamp_(max=CODE_LEVELS)
    return Quantized(codes.copysign_(tensor).to(torch.int8), scale)


def decode(stored: Tensor | Quantized, dtype: torch.dtype) -> Tensor:
    """Decodes codes to a tensor in a dtype, and returns any other tensor as it is.

    The result is computed in float32, whatever the dtype, so that `encode` returns the same codes again.
    """
    if not isinstance(stored, Quantized):
        return stored
    codes = stored.codes.to(torch.float32)
    return (torch.sign(codes) * torch.square(codes * _STEP) * stored.scale).to(dtype)


def _largest(magnitudes: Tensor) -> Tensor:
    """Returns the largest magnitude of each row, 0 for empty rows."""
    shape = row_shape(tuple(magnitudes.shape))
    if magnitudes.numel() == 0:
        return magnitudes.new_zeros(shape)
    return magnitudes.amax(-1, keepdim=True) if shape else magnitudes.clone()
