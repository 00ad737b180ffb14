"""Public name of `use`, which selects the implementation of the rule within a `with` block."""

from celo2.torch.kernels.dispatch import use

__all__ = ["use"]
