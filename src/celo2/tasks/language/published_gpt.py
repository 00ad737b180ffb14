"""GPTs on FineWeb: the 30-million LM, GPT-2 124M and GPT-3 XL of arXiv 2602.19142.

Everything about the networks and their data is as in the public code of those runs; the batch sizes are those
of its AdamW runs, since the learned rule's were not published.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial

from celo2._utils.extras import require
from celo2.tasks.base import Size, Task
from celo2.tasks.language.fineweb import GPT2_VOCABULARY, load_bytes, load_token_shards
from celo2.tasks.language.objective import make_contiguous_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT and of its training.

    Attributes:
        vocabulary: Tokens there are.
        width: Of the residual stream, a multiple of `head_size`.
        num_layers: Blocks of attention and MLP.
        head_size: Of an attention head.
        context: Tokens of a row.
        batch_size: Rows of a training batch.
        rows_at_once: Rows whose activations are in memory together; None: the batch.
        train_tokens: Tokens that the published run trains on.
        folder: Where the tokens are.
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


_bytes_gpt = partial(GPTConfig, vocabulary=256)  # of the bytes of `load_bytes`
_SIZES: Mapping[Size, Mapping[str, GPTConfig]] = {
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
    """A GPT on FineWeb's tokens; smaller ones read bytes of source code.

    Args:
        name: One of `GPTS`.
        size: See `celo2.tasks.base.Size`.
        batch_size: Rows of a training batch; None: the published number, or the size's.

    Raises:
        ImportError: Flax is not installed.
        FileNotFoundError, ValueError: As `load_token_shards` says, or the batch cannot be divided.
    """
    require("eval", "flax")
    from celo2.tasks.language.gpt import GPT

    config = _SIZES[size][name]
    if size == "full":
        dataset = load_token_shards(config.folder, config.context, config.train_tokens)
    else:
        dataset = load_bytes(config.context, _SIZES["full"][name].folder)
    return make_contiguous_task(
        name,
        GPT(config),
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
    for name, config in _SIZES["full"].items()
}
"""What makes each, and a line about it."""
