"""Exports `use`, which selects the implementation of the rule within a `with` block."""

from celo2.jax.dispatch import use

__all__ = ["use"]
