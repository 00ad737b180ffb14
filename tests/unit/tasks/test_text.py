"""The text of the language-model task."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from celo2.tasks.language.stdlib_text import load_stdlib_text


def test_stdlib_text_is_rows_of_python_source() -> None:
    dataset = load_stdlib_text(65, max_bytes=1_000_000)
    assert dataset.name == f"python-{sys.version_info.major}.{sys.version_info.minor}-stdlib"
    for split in (dataset.train, dataset.valid):
        assert split["text"].dtype == np.uint8
        assert split["text"].shape[1] == 65
    total = 65 * (dataset.size("train") + dataset.size("valid"))
    assert 500_000 < total <= 1_000_000
    assert b"import " in dataset.train["text"].tobytes()


def test_stdlib_text_leaves_out_tests_and_keeps_the_last_files_for_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(20):
        (tmp_path / f"m{index:02d}.py").write_text(f"{index:02d}" * 5)
    for skipped in ("test", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "a.py").write_text("skipped" * 10)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    dataset = load_stdlib_text(10)
    assert dataset.train["text"].tobytes().decode() == "".join(f"{index:02d}" * 5 for index in range(19))
    assert dataset.valid["text"].tobytes().decode() == "19" * 5
    assert load_stdlib_text(10, max_bytes=59).size("train") == 4  # five files fit, the last is held out


def test_stdlib_text_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="standard library"):
        load_stdlib_text()
