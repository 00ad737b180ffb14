"""Joining other processes: what is refused, and what each refusal says. Nothing is joined here."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from celo2.commands import meta_train as command
from celo2.meta import outer
from celo2.meta.run import distributed
from celo2.meta.run.distributed import ProcessLostError


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What JAX is asked to join."""
    calls: list[tuple] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words: calls.append(words))
    return calls


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("10.0.0.1:9876", 2, None), "belong together"),
        ((None, 2, 0), "belong together"),
        (("10.0.0.1", 2, 0), "HOST:PORT"),
        ((":9876", 2, 0), "HOST:PORT"),
        (("10.0.0.1:9876", 2, 2), "count from 0"),
        (("10.0.0.1:9876", 2, -1), "count from 0"),
    ],
)
def test_join_says_what_is_missing_or_wrong(joined: list[tuple], given: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distributed.join(*given)
    assert not joined


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ValueError("coordinator_address should be defined."), ValueError, "JAX finds no cluster"),
        (RuntimeError("DEADLINE_EXCEEDED"), ConnectionError, "cannot join the other processes"),
    ],
)
def test_join_translates_what_jax_says(monkeypatch: pytest.MonkeyPatch, error, expected, message) -> None:
    def fail(*words: object) -> None:
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(expected, match=message):
        distributed.join()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), []),
        (("--distributed", "auto"), [(None, None, None)]),
        (("--coordinator", "a:1", "--num-processes", "2", "--process-id", "1"), [("a:1", 2, 1)]),
    ],
    ids=["alone", "auto", "named"],
)
def test_command_joins_what_it_is_told(monkeypatch, joined, tmp_path: Path, words, expected) -> None:
    monkeypatch.setattr(command, "meta_train", lambda *_: Path("weights"))
    assert command.main(["--out", str(tmp_path), *words]) == 0
    assert joined == expected


def test_command_reports_what_cannot_be_joined(joined, tmp_path: Path, capsys) -> None:
    assert command.main(["--out", str(tmp_path), "--num-processes", "2"]) == 2
    assert "--distributed auto" in capsys.readouterr().err


def test_a_lost_process_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with (
        pytest.raises(ProcessLostError, match="--resume --out runs/one"),
        distributed.losses_named(Path("runs/one")),
    ):
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    with pytest.raises(ValueError, match="sigma"), distributed.losses_named(Path("runs/one")):
        raise ValueError("sigma must be positive")


def test_an_error_of_a_process_by_itself_is_no_loss() -> None:
    with pytest.raises(RuntimeError, match="UNAVAILABLE"), distributed.losses_named(Path("runs/one")):
        raise RuntimeError("UNAVAILABLE")


def test_replicated_arrays_are_whole_on_every_device() -> None:
    mesh = outer.make_mesh()
    placed = distributed.replicate({"a": np.arange(3), "b": np.float32(2.0)}, mesh)
    assert placed["a"].is_fully_replicated
    assert len(placed["a"].sharding.device_set) == mesh.size == jax.device_count()
    np.testing.assert_array_equal(placed["a"], np.arange(3))
