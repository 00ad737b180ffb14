"""One writer for a folder, held against another process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celo2._utils.locks import HOLDER_FILE, FolderInUseError, lock_folder
from celo2.commands import compare, evaluate

HOLD = """
import sys
from pathlib import Path
from celo2._utils.locks import lock_folder
with lock_folder(Path(sys.argv[1]), "a command"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock of the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(holder, tmp_path: Path) -> None:
    whom = rf"{tmp_path} is in use by a command, process {holder.pid} on {socket.gethostname()} since 20"
    with pytest.raises(FolderInUseError, match=whom), lock_folder(tmp_path, "another"):
        pytest.fail("both hold it")
    assert (tmp_path / HOLDER_FILE).exists()


def test_a_lock_ends_with_its_holder(holder, tmp_path: Path) -> None:
    holder.communicate("")
    with lock_folder(tmp_path, "another"):
        pass
    assert not (tmp_path / HOLDER_FILE).exists()


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / HOLDER_FILE).exists()
    with lock_folder(tmp_path, "another"):
        assert f'"process": {os.getpid()}' in (tmp_path / HOLDER_FILE).read_text()


def test_an_error_gives_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path, "one"):
        raise ZeroDivisionError
    with lock_folder(tmp_path, "another"):
        pass


def test_one_process_holds_it_once(tmp_path: Path) -> None:
    with lock_folder(tmp_path, "one"), pytest.raises(FolderInUseError), lock_folder(tmp_path, "another"):
        pytest.fail("both hold it")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}"])
def test_an_odd_note_of_the_holder_changes_nothing(holder, tmp_path: Path, text: str) -> None:
    (tmp_path / HOLDER_FILE).write_text(text)
    with pytest.raises(FolderInUseError, match="is in use by"), lock_folder(tmp_path, "another"):
        pytest.fail("both hold it")


@pytest.mark.parametrize("command", [compare, evaluate], ids=["celo2 compare", "celo2 evaluate"])
def test_a_command_holds_its_folder_under_its_own_name(
    command, instant_training, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request
) -> None:
    class SeenError(Exception):
        pass

    def see(_: Path, name: str) -> None:
        assert name in request.node.name
        raise SeenError

    monkeypatch.setattr("celo2.evaluate.suite.run.lock_folder", see)
    words = ["--optimizers", "adamw", "--out", str(tmp_path / "out"), "--devices", "1"]
    with pytest.raises(SeenError):
        command.main(words)


@pytest.mark.parametrize("file", ["suite.json", "metrics.jsonl", "generations.jsonl", "probe.json"])
def test_a_folder_of_another_command_is_left_alone(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{}")
    commands = {"compare", "evaluate", "meta-train", "search", "probe"}
    allowed = {"suite.json": {"compare", "evaluate"}, "metrics.jsonl": {"meta-train"}}
    allowed |= {"generations.jsonl": {"search"}, "probe.json": {"probe", "meta-train"}}
    for command in commands - allowed[file]:
        refused = pytest.raises(ValueError, match=f"has results of celo2 .* folder for celo2 {command}")
        with refused, lock_folder(tmp_path, f"celo2 {command}"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [file]
    for command in allowed[file]:
        with lock_folder(tmp_path, f"celo2 {command}"):
            pass
