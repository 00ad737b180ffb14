"""The texts of the language tasks: records, splits, copies on this machine, and what stands in for them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from celo2.tasks.language import corpora
from celo2.tasks.language.corpora import (
    LM1B,
    WIKIPEDIA,
    load_corpus,
    load_published_corpus,
)
from celo2.tasks.language.fineweb import (
    load_published_shards,
    load_token_shards,
    read_shard,
)
from celo2.tasks.language.stdlib_text import load_stdlib_records, pad_records

PYTHON = f"python-{sys.version_info.major}.{sys.version_info.minor}-stdlib"


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$CELO2_DATA, and a home without a cache."""
    monkeypatch.setenv("CELO2_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


# The standard library's source.


def test_records_are_cut_and_padded() -> None:
    rows = pad_records(np.array([5, 6, 7, 8, 9], np.uint16), [1, 3, 1], 3)
    assert_array_equal(rows, [[5, 0, 0], [6, 7, 8], [9, 0, 0]])
    assert rows.dtype == np.uint16
    assert pad_records(np.zeros(0, np.uint16), [], 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("lines", [b"a = 1", b"if a:", b"pas", b"b = 2"]), ("paragraphs", [b"a = 1\nif a", b"b = 2"])],
)
def test_stdlib_records_are_byte_tokens_after_the_special_ones(
    unit, expected: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text("a = 1\nif a:\n    pas\n\n  \n\nb = 2\n")
    (tmp_path / "b.py").write_text("\x00\xffheld out")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    dataset = load_stdlib_records(unit, 10)
    assert dataset.name == f"{PYTHON}-{unit}"
    tokens = dataset.train["tokens"]
    assert tokens.dtype == np.uint16
    assert_array_equal(tokens, [[byte + 3 for byte in text] + [0] * (10 - len(text)) for text in expected])
    assert dataset.valid["tokens"][0, :3].tolist() == [3, 0xC3 + 3, 0xBF + 3]  # byte 0 is no padding


def test_record_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens"):
        load_stdlib_records("lines", 1)


# LM1B and Wikipedia.

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def sentence(number: int) -> str:
    """A text that says its number."""
    return " ".join(WORDS[int(digit)] for digit in f"{number:04d}")


@pytest.fixture(scope="module")
def model() -> bytes:
    """A SentencePiece model with T5's special ids, trained on the sentences of this file."""
    from sentencepiece import SentencePieceTrainer

    buffer = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([sentence(number * 7 % 10_000) for number in range(300)]),
        model_writer=buffer,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return buffer.getvalue()


@pytest.fixture
def put_model(data_folder: Path, model: bytes) -> Callable[[bytes], None]:
    def put(content: bytes = model) -> None:
        (data_folder / "t5").mkdir(exist_ok=True)
        (data_folder / "t5" / "sentencepiece.model").write_bytes(content)

    return put


def decode(model: bytes, rows: np.ndarray) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    return [processor.decode(row[row != 0].tolist()) for row in rows]


def write_lm1b(folder: Path, num_sentences: int) -> Path:
    shards = folder / "lm1b" / "unpacked" / "training-monolingual.tokenized.shuffled"
    shards.mkdir(parents=True)
    lines = [sentence(number) for number in range(num_sentences)]
    half = num_sentences // 2
    (shards / "news.en-00001-of-00100").write_text(
        "\n".join(lines[:half]) + "\n\n \n"
    )  # blank lines count not
    (shards / "news.en-00002-of-00100").write_text("\n".join(lines[half:]))
    return folder / "lm1b"


def test_lm1b_is_split_by_shares_of_its_sentences(
    data_folder: Path, put_model: Callable, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model()
    write_lm1b(data_folder, 400)
    dataset = load_corpus(LM1B, 65)
    assert dataset.name == "lm1b-t5-392"
    train, valid = dataset.train["tokens"], dataset.valid["tokens"]
    assert train.dtype == np.uint16
    assert train.shape == (392, 65)
    assert decode(model, valid) == [sentence(number) for number in range(4, 8)]
    assert decode(model, train) == [sentence(number) for number in range(8, 400)]
    assert load_corpus(LM1B, 65) is dataset  # once in a process
    cut = load_published_corpus(LM1B, data_folder / "lm1b", 4, max_records=100)
    assert cut.name == "lm1b-t5-98"  # every fourth
    assert_array_equal(cut.train["tokens"], train[::4, :4])
    # The tokens were kept: they are not made again.
    monkeypatch.delattr(corpora, "_tokenize_splits")
    again = load_published_corpus(LM1B, data_folder / "lm1b", 4, max_records=100)
    assert_array_equal(again.valid["tokens"], cut.valid["tokens"])


def test_wikipedia_article_gives_its_first_tokens(
    data_folder: Path, put_model: Callable, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model()
    folder = data_folder / "wikipedia"
    folder.mkdir()
    articles = ["\n".join([sentence(number)] * 20) for number in range(99)]
    lines = [json.dumps({"title": "T", "text": article}) for article in articles]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.txt").write_text("one two")
    short = load_published_corpus(WIKIPEDIA, folder, 8)
    assert short.train["tokens"].shape == (97, 8)
    assert (short.train["tokens"] != 0).sum() == 96 * 8 + np.count_nonzero(short.train["tokens"][-1])
    assert decode(model, short.train["tokens"])[-1] == "one two"
    whole = load_published_corpus(WIKIPEDIA, folder, 300)
    assert decode(model, whole.train["tokens"])[0] == " ".join([sentence(3)] * 20)
    assert_array_equal(whole.train["tokens"][:, :8], short.train["tokens"])
    # A beginning that gives too few tokens is not enough.
    monkeypatch.setattr(corpora, "_CHARACTERS_PER_TOKEN", 1)
    assert_array_equal(
        load_published_corpus(WIKIPEDIA, folder, 50).train["tokens"], whole.train["tokens"][:, :50]
    )


def test_tokens_that_cannot_be_kept_are_used_all_the_same(data_folder: Path, put_model: Callable) -> None:
    put_model()
    folder = write_lm1b(data_folder, 100)
    (folder / "celo2-tokens").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept"):
        assert load_published_corpus(LM1B, folder, 9).size("train") == 98


def test_copy_without_a_model_is_refused(data_folder: Path) -> None:
    folder = write_lm1b(data_folder, 100)
    with pytest.raises(FileNotFoundError, match=r"t5/sentencepiece\.model"):
        load_published_corpus(LM1B, folder, 9)


@pytest.mark.parametrize(
    ("content", "message"), [(b"no model", "is no SentencePiece model"), (None, "T5's has at most 10")]
)
def test_model_of_another_kind_is_refused(
    content: bytes | None,
    message: str,
    data_folder: Path,
    put_model: Callable,
    model: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_model(content or model)
    monkeypatch.setattr(corpora, "T5_VOCABULARY", 10)  # the model of this file has more
    with pytest.raises(ValueError, match=message):
        load_published_corpus(LM1B, write_lm1b(data_folder, 100), 9)


def test_copy_without_files_or_records_is_refused(data_folder: Path, put_model: Callable) -> None:
    put_model()
    folder = data_folder / "wikipedia"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no \*\.txt or \*\.jsonl: put articles"):
        load_published_corpus(WIKIPEDIA, folder, 9)
    (folder / "a.jsonl").write_text('{"title": "no text"}\n' * 100)
    with pytest.raises(ValueError, match=r"a\.jsonl: .*no text.* is no record"):
        load_published_corpus(WIKIPEDIA, folder, 9)
    (folder / "a.jsonl").write_text('{"text": "a"}\n' * 99)
    with pytest.raises(ValueError, match="has 99 records"):
        load_published_corpus(WIKIPEDIA, folder, 9)


@pytest.mark.usefixtures("data_folder")
def test_stand_ins_have_their_own_names() -> None:
    assert load_corpus(LM1B, 9).name == f"{PYTHON}-lines"
    assert load_corpus(WIKIPEDIA, 9).name == f"{PYTHON}-paragraphs"
    fineweb = load_token_shards("fineweb10B-gpt2", 16, 1_000)
    assert fineweb.name == PYTHON
    assert fineweb.train["tokens"].shape[1] == 16


# FineWeb.


def write_shard(path: Path, tokens: np.ndarray, *, magic: int = 20240520, count: int | None = None) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def test_shards_become_rows_of_which_a_part_is_held_out(data_folder: Path) -> None:
    folder = data_folder / "fineweb10B-gpt2"
    folder.mkdir()
    first, second = np.arange(50_000, 50_257)[:203], np.arange(1_000, 1_201)
    write_shard(folder / "fineweb_train_000001.bin", first)
    write_shard(folder / "fineweb_train_000002.bin", second)
    write_shard(folder / "fineweb_val_000000.bin", np.zeros(8))
    dataset = load_token_shards("fineweb10B-gpt2", 4, 10_000)
    train, valid = dataset.train["tokens"], dataset.valid["tokens"]
    assert dataset.name == "fineweb10B-gpt2-380"
    assert train.dtype == np.uint16
    assert (train.shape, valid.shape) == ((95, 4), (5, 4))  # a twentieth of 50 + 50 rows
    rows = np.concatenate([first[:200], second[:200]]).reshape(-1, 4)
    together = np.concatenate([train, valid])
    assert_array_equal(together[np.argsort(together[:, 0])], rows[np.argsort(rows[:, 0])])
    assert load_token_shards("fineweb10B-gpt2", 4, 10_000) is dataset


def test_shards_beyond_the_training_tokens_are_not_read(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celo2.tasks.language.fineweb.VALID_TOKENS", 8)
    write_shard(data_folder / "a_train_1.bin", np.arange(400))
    (data_folder / "a_train_2.bin").write_bytes(b"damaged")
    dataset = load_published_shards(data_folder, 4, 192)
    assert (dataset.size("train"), dataset.size("valid")) == (48, 2)
    with pytest.raises(ValueError, match="a_train_2"):
        load_published_shards(data_folder, 4, 500)


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="put the shards of kjj0/"):
        load_published_shards(tmp_path, 4, 100)
    path = tmp_path / "a_train_1.bin"
    write_shard(path, np.arange(8), magic=7)
    with pytest.raises(ValueError, match=r"begins with \[7, 1\], expected \[20240520, 1\]"):
        read_shard(path)
    write_shard(path, np.arange(8), count=9)
    with pytest.raises(ValueError, match="1040 bytes, but 9 tokens need 1042"):
        read_shard(path)
    write_shard(path, np.arange(7))
    with pytest.raises(ValueError, match="has 1 rows of 4 tokens"):
        load_published_shards(tmp_path, 4, 100)
