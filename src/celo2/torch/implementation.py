"""Which program computes the rule: `use` forces one, for a block of code."""

from celo2.torch.kernels.dispatch import use

__all__ = ["use"]
