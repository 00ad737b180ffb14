"""The front door: help, version, unknown commands, missing extras."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from celo2 import __version__, cli


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert name in printed
        assert command.line in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"celo2 {__version__}"


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compair"]) == 2
    assert "did you mean 'compare'" in capsys.readouterr().err


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tyro" else found(name))
    assert cli.main(["meta-train"]) == 2
    assert "pip install 'celo2[meta]'" in capsys.readouterr().err


def test_importing_celo2_loads_no_framework() -> None:
    script = "import celo2, sys; print([name for name in ('jax', 'torch', 'optax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    import celo2

    for name in celo2.__all__:
        assert getattr(celo2, name) is not None
    with pytest.raises(AttributeError, match="celo3"):
        _ = celo2.celo3
