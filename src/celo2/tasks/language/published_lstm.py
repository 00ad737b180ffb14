"""The published recurrent language models: an LSTM on LM1B, and the same one on Wikipedia."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial

from celo2._utils.extras import require
from celo2.tasks.base import Size, Task
from celo2.tasks.language.corpora import (
    LM1B,
    T5_VOCABULARY,
    WIKIPEDIA,
    Corpus,
    load_corpus,
    load_stand_in,
)
from celo2.tasks.language.objective import make_padded_task
from celo2.tasks.language.stdlib_text import BYTE_VOCABULARY


@dataclasses.dataclass(frozen=True, kw_only=True)
class RNNLMConfig:
    """Sizes of a recurrent language model.

    Attributes:
        vocabulary: Tokens there are.
        embedding_size: Of a token's vector.
        hidden_size: Of the LSTM.
        context: Tokens of a record that are read.
        batch_size: Records of a training batch.
    """

    vocabulary: int
    embedding_size: int
    hidden_size: int
    context: int
    batch_size: int


_SIZES: Mapping[Size, RNNLMConfig] = {
    "full": RNNLMConfig(
        vocabulary=T5_VOCABULARY, embedding_size=128, hidden_size=256, context=32, batch_size=128
    ),
    "small": RNNLMConfig(
        vocabulary=BYTE_VOCABULARY, embedding_size=64, hidden_size=128, context=32, batch_size=32
    ),
    "tiny": RNNLMConfig(
        vocabulary=BYTE_VOCABULARY, embedding_size=16, hidden_size=32, context=8, batch_size=16
    ),
}


def make_rnn_lm(name: str, corpus: Corpus, *, size: Size = "full", batch_size: int | None = None) -> Task:
    """A published recurrent language model; smaller ones read bytes of source code.

    Args:
        name: One of `RNN_LMS`.
        corpus: What it learns.
        size: See `celo2.tasks.base.Size`.
        batch_size: Records of a training batch; None: the published number, or the size's.

    Raises:
        ImportError: Flax is not installed.
        FileNotFoundError, ValueError: As `load_corpus` says.
    """
    require("eval", "flax")
    from celo2.tasks.language.lstm import LSTMLM

    config = _SIZES[size]
    load = load_corpus if size == "full" else load_stand_in
    return make_padded_task(
        name,
        LSTMLM(config),
        load(corpus, config.context + 1),
        batch_size=batch_size or config.batch_size,
        initial_loss=math.log(config.vocabulary),  # from states of zero the first logits are small
    )


_CORPORA: Mapping[str, Corpus] = {
    "RNNLM_lm1b32k_Patch32_LSTM256_Embed128": LM1B,
    "RNNLM_wikipediaen32k_Patch32_LSTM256_Embed128": WIKIPEDIA,
}
RNN_LMS: Mapping[str, tuple[Callable[..., Task], str]] = {
    name: (partial(make_rnn_lm, name, corpus), f"LSTM of 256 on {corpus.name} in rows of 32 tokens")
    for name, corpus in _CORPORA.items()
}
"""What makes each, and a line about it."""
