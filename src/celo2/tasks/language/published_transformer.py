"""The published transformer language models on LM1B: `TransformerLM_LM1B_MultiRuntime_0`, `_2`, `_5`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from celo2._utils.extras import require
from celo2.tasks.base import Size, Task
from celo2.tasks.language.corpora import LM1B, T5_VOCABULARY, load_corpus, load_stand_in
from celo2.tasks.language.objective import make_padded_task
from celo2.tasks.language.stdlib_text import BYTE_VOCABULARY
from celo2.tasks.nn import TRUNCATED_STD


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerLMConfig:
    """Sizes of a transformer language model.

    Attributes:
        vocabulary: Tokens there are.
        width: Of the residual stream.
        num_heads: Attention heads.
        head_size: Of a head; the heads together need not have the width.
        num_layers: Blocks of attention and MLP.
        context: Tokens of a record that are read.
        dropout: Share of each block's outputs that is dropped, in [0, 1).
        batch_size: Records of a training batch.
    """

    vocabulary: int = T5_VOCABULARY
    width: int
    num_heads: int
    head_size: int = 32
    num_layers: int
    context: int
    dropout: float
    batch_size: int


_FULL: Mapping[str, TransformerLMConfig] = {
    "TransformerLM_LM1B_MultiRuntime_0": TransformerLMConfig(
        width=20, num_heads=5, num_layers=1, context=8, dropout=0.1, batch_size=4
    ),
    "TransformerLM_LM1B_MultiRuntime_2": TransformerLMConfig(
        width=32, num_heads=4, num_layers=2, context=8, dropout=0.1, batch_size=8
    ),
    "TransformerLM_LM1B_MultiRuntime_5": TransformerLMConfig(
        width=32, num_heads=4, num_layers=1, context=32, dropout=0.0, batch_size=8
    ),
}
_CHANGES: Mapping[Size, Mapping[str, Any]] = {  # what a size has different; depth and dropout stay
    "full": {},
    "small": {"vocabulary": BYTE_VOCABULARY, "batch_size": 32},
    "tiny": {
        "vocabulary": BYTE_VOCABULARY,
        "width": 24,
        "num_heads": 3,
        "head_size": 8,
        "context": 8,
        "batch_size": 8,
    },
}


def make_transformer_lm(name: str, *, size: Size = "full", batch_size: int | None = None) -> Task:
    """A published transformer language model on LM1B; smaller ones read bytes of source code.

    Args:
        name: One of `TRANSFORMER_LMS`.
        size: See `celo2.tasks.base.Size`.
        batch_size: Records of a training batch; None: the published number, or the size's.

    Raises:
        ImportError: Flax is not installed.
        FileNotFoundError, ValueError: As `load_corpus` says.
    """
    require("eval", "flax")
    from celo2.tasks.language.transformer import TransformerLM

    config = dataclasses.replace(_FULL[name], **_CHANGES[size])
    load = load_corpus if size == "full" else load_stand_in
    return make_padded_task(
        name,
        TransformerLM(config),
        load(LM1B, config.context + 1),
        batch_size=batch_size or config.batch_size,
        # The logits are normal: a vector of mean square one times a truncated normal's columns.
        initial_loss=math.log(config.vocabulary) + TRUNCATED_STD**2 / 2,
        stochastic=config.dropout > 0,
    )


TRANSFORMER_LMS: Mapping[str, tuple[Callable[..., Task], str]] = {
    name: (
        partial(make_transformer_lm, name),
        f"transformer, {config.num_layers} × {config.width}, on LM1B in rows of {config.context} tokens",
    )
    for name, config in _FULL.items()
}
"""What makes each, and a line about it."""
