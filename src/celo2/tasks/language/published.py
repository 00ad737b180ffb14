"""Published language models: sizes, batch sizes and data, registered under their published names.

`GPTS`: the 30-million LM, GPT-2 124M and GPT-3 XL of arXiv 2602.19142, on FineWeb. Networks and data are as
in the public code of those runs; the batch sizes are those of its AdamW runs, since the learned rule's were
not published. `RNN_LMS`: an LSTM on LM1B and Wikipedia. `TRANSFORMER_LMS`:
`TransformerLM_LM1B_MultiRuntime_0`, `_2` and `_5`. The last two are defined by
google/learned_optimization.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

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
from celo2.tasks.language.fineweb import GPT2_VOCABULARY, load_bytes, load_token_shards
from celo2.tasks.language.objective import make_contiguous_task, make_padded_task
from celo2.tasks.language.stdlib_text import BYTE_VOCABULARY
from celo2.tasks.nn import TRUNCATED_STD


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT and of its training.

    Attributes:
        vocabulary: Number of tokens in the vocabulary.
        width: Width of the residual stream, a multiple of `head_size`.
        num_layers: Blocks of attention and MLP.
        head_size: Width of an attention head.
        context: Tokens in a row.
        batch_size: Rows in a training batch.
        rows_at_once: Number of rows computed together; None: the whole batch.
        train_tokens: Tokens on which the published run trains.
        folder: Name of the folder with the tokens.
    """

    vocabulary: int = GPT2_VOCABULARY
    width: int
    num_layers: int
    head_size: int = 128
    context: int
    batch_size: int
    rows_at_once: int | None = None
    train_tokens: int = 0
    folder: str = ""


_bytes_gpt = partial(GPTConfig, vocabulary=256)  # for the bytes of `load_bytes`
_GPT_SIZES: Mapping[Size, Mapping[str, GPTConfig]] = {
    "full": {
        "lm-30m": GPTConfig(
            width=384,
            num_layers=6,
            context=512,
            batch_size=64,
            rows_at_once=16,
            train_tokens=598_310_400,
            folder="finewebedu10B-gpt2",
        ),
        "gpt2-124m": GPTConfig(
            width=768,
            num_layers=12,
            context=1024,
            batch_size=512,
            rows_at_once=16,
            train_tokens=2_470_640_640,
            folder="fineweb10B-gpt2",
        ),
        "gpt3-xl": GPTConfig(
            width=2048,
            num_layers=24,
            context=2048,
            batch_size=512,
            rows_at_once=2,
            train_tokens=10_000_000_000,
            folder="fineweb10B-gpt2",
        ),
    },
    "small": {
        "lm-30m": _bytes_gpt(width=64, num_layers=2, head_size=32, context=64, batch_size=16),
        "gpt2-124m": _bytes_gpt(width=64, num_layers=3, head_size=16, context=64, batch_size=16),
        "gpt3-xl": _bytes_gpt(width=96, num_layers=3, head_size=32, context=64, batch_size=16),
    },
    "tiny": {
        "lm-30m": _bytes_gpt(width=16, num_layers=1, head_size=8, context=16, batch_size=8),
        "gpt2-124m": _bytes_gpt(width=16, num_layers=2, head_size=8, context=16, batch_size=8),
        "gpt3-xl": _bytes_gpt(width=16, num_layers=2, head_size=4, context=16, batch_size=8),
    },
}


def make_gpt(name: str, *, size: Size = "full", batch_size: int | None = None) -> Task:
    """Makes a GPT on FineWeb's tokens; smaller sizes use bytes of source code.

    Args:
        name: One of `GPTS`.
        size: See `celo2.tasks.base.Size`.
        batch_size: Rows of a training batch; None: the published number, or the size's.

    Raises:
        ImportError: Flax is not installed.
        FileNotFoundError, ValueError: See `load_token_shards`; or the batch cannot be divided.
    """
    require("eval", "flax")
    from celo2.tasks.language.gpt import GPT

    config = _GPT_SIZES[size][name]
    if size == "full":
        dataset = load_token_shards(config.folder, config.context, config.train_tokens)
    else:
        dataset = load_bytes(config.context, _GPT_SIZES["full"][name].folder)
    return make_contiguous_task(
        name,
        GPT(config.vocabulary, config.width, config.num_layers, config.head_size),
        dataset,
        batch_size=batch_size or config.batch_size,
        initial_loss=math.log(config.vocabulary) + 0.5,  # the logits are standard normal
        rows_at_once=config.rows_at_once,
    )


GPTS: Mapping[str, tuple[Callable[..., Task], str]] = {
    name: (
        partial(make_gpt, name),
        f"GPT, {config.num_layers} × {config.width}, on FineWeb in rows of {config.context} tokens",
    )
    for name, config in _GPT_SIZES["full"].items()
}
"""Constructor and one-line summary of each task, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RNNLMConfig:
    """Sizes of a recurrent language model.

    Attributes:
        vocabulary: Number of tokens in the vocabulary.
        embedding_size: Width of a token's embedding.
        hidden_size: Width of the LSTM.
        context: Tokens of a record that are read.
        batch_size: Records of a training batch.
    """

    vocabulary: int
    embedding_size: int
    hidden_size: int
    context: int
    batch_size: int


_LSTM_SIZES: Mapping[Size, RNNLMConfig] = {
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
    """Makes a published recurrent language model; smaller sizes use bytes of source code.

    Args:
        name: One of `RNN_LMS`.
        corpus: The text to learn.
        size: See `celo2.tasks.base.Size`.
        batch_size: Records of a training batch; None: the published number, or the size's.

    Raises:
        ImportError: Flax is not installed.
        FileNotFoundError, ValueError: See `load_corpus`.
    """
    require("eval", "flax")
    from celo2.tasks.language.lstm import LSTMLM

    config = _LSTM_SIZES[size]
    load = load_corpus if size == "full" else load_stand_in
    return make_padded_task(
        name,
        LSTMLM(config.vocabulary, config.embedding_size, config.hidden_size),
        load(corpus, config.context + 1),
        batch_size=batch_size or config.batch_size,
        initial_loss=math.log(config.vocabulary),  # the zero initial state keeps the first logits small
    )


_LSTM_CORPORA: Mapping[str, Corpus] = {
    "RNNLM_lm1b32k_Patch32_LSTM256_Embed128": LM1B,
    "RNNLM_wikipediaen32k_Patch32_LSTM256_Embed128": WIKIPEDIA,
}
RNN_LMS: Mapping[str, tuple[Callable[..., Task], str]] = {
    name: (partial(make_rnn_lm, name, corpus), f"LSTM of 256 on {corpus.name} in rows of 32 tokens")
    for name, corpus in _LSTM_CORPORA.items()
}
"""Constructor and one-line summary of each task, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerLMConfig:
    """Sizes of a transformer language model.

    Attributes:
        vocabulary: Number of tokens in the vocabulary.
        width: Width of the residual stream.
        num_heads: Attention heads.
        head_size: Width of a head; the heads' total width may differ from the stream's.
        num_layers: Blocks of attention and MLP.
        context: Tokens of a record that are read.
        dropout: Probability of dropping an output of a block, in [0, 1).
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


_TRANSFORMERS: Mapping[str, TransformerLMConfig] = {
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
_TRANSFORMER_CHANGES: Mapping[
    Size, Mapping[str, Any]
] = {  # differences from the full size; depth and dropout are the same
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
    """Makes a published transformer language model on LM1B; smaller sizes use bytes of source code.

    Args:
        name: One of `TRANSFORMER_LMS`.
        size: See `celo2.tasks.base.Size`.
        batch_size: Records of a training batch; None: the published number, or the size's.

    Raises:
        ImportError: Flax is not installed.
        FileNotFoundError, ValueError: See `load_corpus`.
    """
    require("eval", "flax")
    from celo2.tasks.language.transformer import TransformerLM

    config = dataclasses.replace(_TRANSFORMERS[name], **_TRANSFORMER_CHANGES[size])
    load = load_corpus if size == "full" else load_stand_in
    return make_padded_task(
        name,
        TransformerLM(
            config.vocabulary,
            config.width,
            config.num_heads,
            config.head_size,
            config.num_layers,
            config.dropout,
        ),
        load(LM1B, config.context + 1),
        batch_size=batch_size or config.batch_size,
        # The logits are normal: a vector of mean square one times columns of truncated normals.
        initial_loss=math.log(config.vocabulary) + TRUNCATED_STD**2 / 2,
        stochastic=config.dropout > 0,
    )


TRANSFORMER_LMS: Mapping[str, tuple[Callable[..., Task], str]] = {
    name: (
        partial(make_transformer_lm, name),
        f"transformer, {config.num_layers} × {config.width}, on LM1B in rows of {config.context} tokens",
    )
    for name, config in _TRANSFORMERS.items()
}
"""Constructor and one-line summary of each task, by name."""
