"""LM1B and Wikipedia as padded records of T5 tokens, read from local files only.

Copies are looked up in folders `lm1b` and `wikipedia`, as described in `celo2.tasks.vision.datasets`. A copy
is tokenised with T5's SentencePiece model, `t5/sentencepiece.model` beside them, and the tokens are saved in
the copy's folder. Without a copy, tasks use source code instead, under its own name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from celo2._utils.extras import require
from celo2._utils.files import write_atomic
from celo2._utils.user_warnings import warn
from celo2.tasks.base import Dataset
from celo2.tasks.language.stdlib_text import (
    RecordUnit,
    load_stdlib_records,
    pad_records,
)
from celo2.tasks.vision.datasets import find_folder

T5_VOCABULARY = 32_100  # `cc_all.32000` and 100 ids that do not occur in texts
MAX_RECORDS = (
    1_000_000  # of the training split, spread evenly over the copy; 1 % of it of the validation split
)
_SPECIAL_IDS = {"pad": 0, "eos": 1, "unk": 2}
_CHUNK = 4_096  # records tokenised at once
_CHARACTERS_PER_TOKEN = 64  # determines how much of a text is tokenised first


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Specification of a published text corpus.

    Attributes:
        title: Name given by the authors.
        name: Name of its folder and of the data set.
        patterns: Patterns of files, at any depth, with one record per line (`.jsonl`: as `text`).
        train_from: Share of the records before the training split; validation is from 0.01 to 0.02.
        stand_in: Records of the standard library's source code that replace it.
        content: Expected content of the folder, for messages.
    """

    title: str
    name: str
    patterns: tuple[str, ...]
    train_from: float
    stand_in: RecordUnit
    content: str


LM1B = Corpus(
    "LM1B",
    "lm1b",
    ("training-monolingual.tokenized.shuffled/news.en-*",),
    train_from=0.02,
    stand_in="lines",
    content="the unpacked 1-billion-word-language-modeling-benchmark-r13output",
)
WIKIPEDIA = Corpus(
    "Wikipedia (2020-12-01, English)",
    "wikipedia",
    ("*.txt", "*.jsonl"),
    train_from=0.03,
    stand_in="paragraphs",
    content="articles in plain text, one a line in .txt files or as `text` in .jsonl files",
)


def load_corpus(corpus: Corpus, length: int) -> Dataset:
    """Loads the published text if there is a copy, otherwise its stand-in; cached in the process.

    Args:
        corpus: `LM1B` or `WIKIPEDIA`.
        length: Tokens in a record, ≥ 2: a model's context plus one.

    Returns:
        `tokens` uint16 `(N, length)` in each split, from `load_published_corpus` or `load_stdlib_records`.

    Raises:
        FileNotFoundError, ImportError, ValueError: There is a copy, but it cannot be read; see
        `load_published_corpus`.
    """
    folder = find_folder(corpus.name)
    return load_stand_in(corpus, length) if folder is None else _load_once(corpus, folder, length)


@functools.cache
def load_stand_in(corpus: Corpus, length: int) -> Dataset:
    """Loads the stand-in, `load_stdlib_records`; cached in the process."""
    return dataclasses.replace(load_stdlib_records(corpus.stand_in, length), stands_in_for=corpus.title)


@functools.cache
def _load_once(corpus: Corpus, folder: Path, length: int) -> Dataset:
    return load_published_corpus(corpus, folder, length)


def load_published_corpus(
    corpus: Corpus, folder: Path, length: int, *, max_records: int = MAX_RECORDS
) -> Dataset:
    """Loads each record's first tokens, padded with 0 on the right, without begin or end tokens.

    The splits are those of the published tasks, by fractions of the records in file order: the
    second per cent is for validation, and the records from `corpus.train_from` on for training. Reading takes
    minutes; the tokens are then saved in `folder/celo2-tokens`, if it is writable.

    Args:
        corpus: The text.
        folder: Folder with the text's files.
        length: Tokens in a record, ≥ 2.
        max_records: Maximum training records, evenly spread; validation has at most 1 % of that.

    Returns:
        `tokens` uint16 `(N, length)` in each split. The name has the number of records: `lm1b-t5-1000000`.

    Raises:
        FileNotFoundError: There are no files, or no SentencePiece model.
        ImportError: sentencepiece is not installed.
        ValueError: The copy has fewer than 100 records, a line is not an article, or the model is not T5's.
    """
    files = sorted(path for pattern in corpus.patterns for path in folder.rglob(pattern) if path.is_file())
    if not files:
        raise FileNotFoundError(
            f"{folder} has no {' or '.join(corpus.patterns)}: put {corpus.content} there."
        )
    model = _find_model()
    described = [(str(path.relative_to(folder)), path.stat().st_size) for path in files]
    key = hashlib.sha256(
        repr((corpus, described, length, max_records)).encode() + model.read_bytes()
    ).hexdigest()
    paths = {name: folder / "celo2-tokens" / f"{name}-{key[:16]}.npy" for name in ("train", "valid")}
    if not all(path.exists() for path in paths.values()):
        splits = _tokenize_splits(corpus, files, model, length, max_records)
        _keep(splits, paths)
    else:
        splits = {name: np.load(path, allow_pickle=False) for name, path in paths.items()}
    return Dataset(
        name=f"{corpus.name}-t5-{len(splits['train'])}",
        train={"tokens": splits["train"]},
        valid={"tokens": splits["valid"]},
        origin=f"{corpus.name} from {folder}, tokens of T5's SentencePiece model",
    )


def _tokenize_splits(
    corpus: Corpus, files: Sequence[Path], model: Path, length: int, max_records: int
) -> dict[str, np.ndarray]:
    processor = _load_model(model)
    count = sum(1 for _ in _read_lines(files))
    if count < 100:
        raise ValueError(f"{files[0].parent} has {count} records; the splits of {corpus.name} need 100.")
    shares = {"train": (corpus.train_from, 1.0, max_records), "valid": (0.01, 0.02, max_records // 100)}
    splits = {}
    for name, (first, last, most) in shares.items():
        start, stop = round(first * count), round(last * count)
        stride = -(-(stop - start) // max(1, most))
        lines = itertools.islice(_read_lines(files), start, stop, stride)
        splits[name] = _tokenize((_parse(path, line) for path, line in lines), processor, length)
    return splits


def _read_lines(files: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    """Yields the lines that are not blank, each with its file."""
    for path in files:
        with path.open("rb") as file:
            yield from ((path, line) for line in file if not line.isspace())


def _parse(path: Path, line: bytes) -> str:
    try:
        text = json.loads(line)["text"] if path.suffix == ".jsonl" else line.decode()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {line[:60]!r} is no record: {error!r}.") from error
    return str(text).strip()


def _tokenize(texts: Iterable[str], processor: Any, length: int) -> np.ndarray:
    """Tokenizes all texts with at least one token into rows, `(N, length)` uint16."""
    rows = [np.zeros((0, length), np.uint16)]
    while chunk := list(itertools.islice(texts, _CHUNK)):
        starts = [_beginning(text, _CHARACTERS_PER_TOKEN * length) for text in chunk]
        records = [
            ids if len(ids) >= length or start == text else processor.encode(text)
            for text, start, ids in zip(chunk, starts, processor.encode(starts), strict=True)
        ]
        kept = [ids[:length] for ids in records if ids]
        tokens = np.fromiter(itertools.chain.from_iterable(kept), np.uint16)
        rows.append(pad_records(tokens, [len(ids) for ids in kept], length))
    return np.concatenate(rows)


def _beginning(text: str, characters: int) -> str:
    """Truncates a text to a number of characters, at a space if possible, since no token crosses spaces."""
    space = text.rfind(" ", 0, characters) if len(text) > characters else -1
    return text[:space] if space > 0 else text


def _find_model() -> Path:
    folder = find_folder("t5")
    if folder is None or not (folder / "sentencepiece.model").is_file():
        raise FileNotFoundError(
            "no t5/sentencepiece.model in $CELO2_DATA or ~/.cache/celo2: put T5's SentencePiece model "
            "(cc_all.32000) there."
        )
    return folder / "sentencepiece.model"


def _load_model(path: Path) -> Any:
    require("eval", "sentencepiece")
    from sentencepiece import SentencePieceProcessor

    try:
        processor: Any = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is no SentencePiece model: {error}.") from error
    found = {name: getattr(processor, f"{name}_id")() for name in _SPECIAL_IDS}
    if found != _SPECIAL_IDS or processor.vocab_size() > T5_VOCABULARY:
        raise ValueError(
            f"{path} has {processor.vocab_size()} pieces and the ids {found}; T5's has at most "
            f"{T5_VOCABULARY} and {_SPECIAL_IDS}."
        )
    return processor


def _keep(splits: dict[str, np.ndarray], paths: dict[str, Path]) -> None:
    try:
        for name, path in paths.items():
            path.parent.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, splits[name], allow_pickle=False)
            write_atomic(path, buffer.getvalue())
    except OSError as error:
        warn(f"the tokens are not kept, and the next run makes them anew: {error}")
