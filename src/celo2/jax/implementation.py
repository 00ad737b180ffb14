"""Which program computes the rule: `use` forces one, for a block of code."""

from celo2.jax.dispatch import use

__all__ = ["use"]
