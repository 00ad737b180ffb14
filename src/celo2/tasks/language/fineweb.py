"""FineWeb as rows of GPT-2 tokens, read from local binary shards only.

The shards are those of the repositories `kjj0/fineweb10B-gpt2` and `kjj0/finewebedu10B-gpt2`: a header of
256 int32 (magic, version, number of tokens), then the tokens as uint16. They are looked up as described in
`celo2.tasks.vision.datasets`, in folders named after the repositories.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from celo2.tasks.base import Dataset
from celo2.tasks.language.stdlib_text import load_stdlib_text
from celo2.tasks.vision.datasets import find_folder

GPT2_VOCABULARY = 50_257
VALID_TOKENS = 20_000_000  # of the published split
_MAX_VALID_SHARE = 0.05  # of a copy too small for that
_MAGIC, _VERSION, _HEADER_BYTES = 20_240_520, 1, 256 * 4
_PERMUTATION_SEED = 0  # for the rows, before they are split


def load_token_shards(name: str, context: int, train_tokens: int) -> Dataset:
    """Loads the published tokens if there is a copy, otherwise bytes of source code; cached in the process.

    Args:
        name: Name of the folder, for example `fineweb10B-gpt2`.
        context: Tokens in a row, ≥ 2.
        train_tokens: Maximum tokens in the training split.

    Returns:
        `tokens` `(N, context)` in each split: uint16 from `load_published_shards`, or uint8 bytes of
        `load_stdlib_text` under its name.

    Raises:
        FileNotFoundError, ValueError: There is a copy, but it lacks shards or has a damaged one.
    """
    folder = find_folder(name)
    return load_bytes(context, name) if folder is None else _load_once(folder, context, train_tokens)


def load_bytes(context: int, stands_in_for: str) -> Dataset:
    """Loads the stand-in: the bytes of `load_stdlib_text` as `tokens`."""
    text = load_stdlib_text(context)
    train, valid = ({"tokens": split["text"]} for split in (text.train, text.valid))
    return Dataset(text.name, train, valid, text.origin, stands_in_for)


@functools.cache
def _load_once(folder: Path, context: int, train_tokens: int) -> Dataset:
    return load_published_shards(folder, context, train_tokens)


def load_published_shards(folder: Path, context: int, train_tokens: int) -> Dataset:
    """Loads contiguous rows, across documents, from the shards `*_train_*.bin` in the order of their names.

    A permutation of the rows with a fixed seed selects the validation split: 20 million tokens, or a
    twentieth of a copy with less than 400 million.

    Args:
        folder: Folder with the shards.
        context: Tokens in a row, ≥ 2; a shard's last, shorter row is dropped.
        train_tokens: Maximum tokens in the training split; shards beyond are not read.

    Returns:
        `tokens` uint16 `(N, context)` in each split. The name includes the number of training tokens:
        `fineweb10B-gpt2-2470640640`.

    Raises:
        FileNotFoundError: There are no shards.
        ValueError: A shard is damaged, or the shards together have fewer than two rows.
    """
    paths = sorted(folder.glob("*_train_*.bin"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no *_train_*.bin: put the shards of kjj0/{folder.name} there.")
    wanted = (train_tokens + VALID_TOKENS) // context
    parts, count = [], 0
    for path in paths:
        if count >= wanted:
            break
        shard = read_shard(path)
        parts.append(shard[: len(shard) // context * context].reshape(-1, context)[: wanted - count])
        count += len(parts[-1])
    if count < 2:
        raise ValueError(f"{folder} has {count} rows of {context} tokens; at least 2 are needed.")
    num_valid = max(1, min(VALID_TOKENS // context, int(_MAX_VALID_SHARE * count)))
    held_out = np.zeros(count, bool)
    held_out[np.random.default_rng(_PERMUTATION_SEED).permutation(count)[-num_valid:]] = True
    train, valid = (_select(parts, chosen) for chosen in (~held_out, held_out))
    return Dataset(
        name=f"{folder.name}-{train.size}",
        train={"tokens": train},
        valid={"tokens": valid},
        origin=f"FineWeb, ODC-By, GPT-2 tokens of kjj0/{folder.name}, from {folder}",
    )


def read_shard(path: Path) -> np.ndarray:
    """Reads the tokens of one shard, `(N,)` uint16, memory-mapped.

    Raises:
        ValueError: The header is not a shard's, or does not match the file's length.
    """
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", _HEADER_BYTES // 4)
    if len(header) < _HEADER_BYTES // 4 or tuple(header[:2]) != (_MAGIC, _VERSION):
        raise ValueError(
            f"{path} begins with {header[:2].tolist()}, expected {[_MAGIC, _VERSION]} and a header of "
            f"{_HEADER_BYTES} bytes: it is no shard of tokens."
        )
    count = int(header[2])
    if size != _HEADER_BYTES + 2 * count:
        raise ValueError(
            f"{path} has {size} bytes, but {count} tokens need {_HEADER_BYTES + 2 * count}: copy it again."
        )
    return np.memmap(path, "<u2", "r", _HEADER_BYTES, (count,))


def _select(parts: list[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Selects rows by indices into the concatenation of all parts."""
    borders = np.cumsum([len(part) for part in parts])[:-1]
    rows = [np.asarray(part[mask]) for part, mask in zip(parts, np.split(chosen, borders), strict=True)]
    return np.concatenate(rows)
