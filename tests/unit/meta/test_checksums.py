"""Which changes to a checkpoint are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from celo2.meta.run.checksums import CHECKSUMS, find_damage, write_checksums


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    (tmp_path / "_METADATA").write_bytes(b"{}")
    (tmp_path / "d" / "array").write_bytes(bytes(range(100)))
    write_checksums(tmp_path)
    return tmp_path


def test_what_is_as_it_was_written_is_fine(checkpoint: Path) -> None:
    assert find_damage(checkpoint) == ""


@pytest.mark.parametrize("name", ["_METADATA", "d/array"])
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: path.unlink(),
    ],
    ids=["cut", "one bit", "gone"],
)
def test_any_change_to_any_file_is_named(checkpoint: Path, name: str, change: Callable[[Path], None]) -> None:
    change(checkpoint / name)
    assert name in find_damage(checkpoint)


def test_cut_checksums_are_damage_and_missing_ones_are_not(checkpoint: Path) -> None:
    file = checkpoint / CHECKSUMS
    file.write_text(file.read_text()[:-10])
    assert CHECKSUMS in find_damage(checkpoint)
    file.unlink()
    assert find_damage(checkpoint) == ""
