"""The language models' data: shards of GPT-2 tokens."""

from __future__ import annotations

from pathlib import Path

from plan import Need

from celo2.tasks.language.fineweb import VALID_TOKENS, read_shard

TOKEN_BYTES = 2


def need_tokens(folder: str, train_tokens: int) -> Need:
    """Returns the need for `train_tokens` training tokens and the validation tokens in a folder of shards."""
    wanted = train_tokens + VALID_TOKENS

    def check(place: Path) -> None:
        found = sum(len(read_shard(path)) for path in sorted(place.glob("*_train_*.bin")))
        if found < wanted:
            raise ValueError(
                f"{place} has {found:,} tokens in *_train_*.bin; a run reads {wanted:,}: add shards."
            )

    return Need(
        folder,
        f"the first shards *_train_*.bin of kjj0/{folder} on the Hugging Face Hub, {wanted:,} tokens",
        num_bytes=TOKEN_BYTES * wanted,
        on_device=TOKEN_BYTES * train_tokens,
        check_content=check,
    )
