"""Byte-level transformers."""

from __future__ import annotations

import dataclasses

from jax import Array

from celo2.tasks.base import Params
from celo2.tasks.families._text import TextFamily
from celo2.tasks.transformer import TransformerConfig, compute_logits, init_transformer

__all__ = ["TransformerFamily"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerFamily(TextFamily):
    """One causal block of width 16 with two heads; 10,976 parameters, most of them the bytes' vectors.

    Attributes:
        width: Of the residual stream.
        num_heads: Attention heads.
    """

    width: int = 16
    num_heads: int = 2

    def init_params(self, key: Array) -> Params:
        """Untrained transformer."""
        return init_transformer(key, self._config)

    def compute_logits(self, params: Params, tokens: Array) -> Array:
        """Scores of the next byte."""
        return compute_logits(params, tokens, self._config)

    @property
    def _config(self) -> TransformerConfig:
        return TransformerConfig(
            width=self.width, num_layers=1, num_heads=self.num_heads, context=self.context, mlp_ratio=2
        )
