"""`celo2 weights` as a user sees it."""

from __future__ import annotations

import hashlib

import pytest

from celo2.commands import weights as command
from celo2.config import RuleConfig
from celo2.weights import sources
from celo2.weights.checkpoint import SHIPPED, Weights, load_checkpoint, save_weights
from helpers.weights_examples import make_weights


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder and a package without shipped weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_pretrained", lambda: tmp_path / "pretrained")
    return tmp_path


def test_list_shows_the_shipped_weights(here, capsys):
    (here / "pretrained").mkdir()
    for name in SHIPPED:
        save_weights(here / "pretrained" / f"{name}.safetensors", make_weights(orthogonalize=name == "celo2"))
    assert command.main(["list"]) == 0
    out = capsys.readouterr().out
    digest = hashlib.sha256((here / "pretrained" / "celo2.safetensors").read_bytes()).hexdigest()
    for expected in ("celo2-base, 347 numbers", digest, "command: a test"):
        assert expected in out


def test_list_says_what_is_missing(capsys):
    assert command.main(["list"]) == 1
    assert "reinstall" in capsys.readouterr().out


def test_inspect_marks_what_differs_from_the_defaults(capsys):
    save_weights("w.safetensors", make_weights(orthogonalize=False))
    assert command.main(["inspect", "w.safetensors"]) == 0
    out = capsys.readouterr().out
    marked = [line.split()[1] for line in out.splitlines() if line.startswith("*  ")]
    assert marked == ["orthogonalize"]
    for name in RuleConfig().weight_shapes():
        assert f"\n{name} " in out


def test_inspect_marks_what_an_upstream_file_does_not_say(capsys):
    save_weights("theta.state", make_weights())
    assert command.main(["inspect", "theta.state", "--set", "orthogonalize=false"]) == 0
    out = capsys.readouterr().out
    assert "celo2-base, 347 numbers" in out
    assert " ? exp_mult" in out
    assert "*  orthogonalize" in out


def test_inspect_escapes_control_characters(capsys):
    weights = Weights(make_weights().arrays, provenance={"note": "\x1b[2J\ud800"})
    save_weights("w.safetensors", weights)
    assert command.main(["inspect", "w.safetensors"]) == 0
    assert r"\x1b[2J\ud800" in capsys.readouterr().out


def test_verify_prints_one_line_for_each_source(capsys, here):
    save_weights("w.safetensors", make_weights())
    (here / "broken.safetensors").write_bytes(b"nothing")
    assert command.main(["verify", "w.safetensors"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("OK w.safetensors: celo2, 347 numbers; as it was written; digest ")
    assert len(line.split()[-1]) == 64
    assert command.main(["verify", "broken.safetensors", "w.safetensors", "nowhere.state"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["REFUSED", "OK", "REFUSED"]
    assert "broken.safetensors: expected a safetensors file" in lines[0]


@pytest.mark.parametrize("command_name", ["verify", "inspect"])
def test_a_file_without_a_digest_is_not_verifiable(capsys, command_name):
    save_weights("theta.state", make_weights())
    assert command.main([command_name, "theta.state", "--set", "orthogonalize=true"]) == 0
    assert "not verifiable, the file carries no digest" in capsys.readouterr().out


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_known(monkeypatch, capsys, name):
    """If it fails: run tools/known_weights.py on the shipped files."""
    monkeypatch.undo()
    assert command.main(["verify", name]) == 0
    assert f"known: {name}, shipped with celo2" in capsys.readouterr().out


RELEASED = {
    "celo2_released.safetensors": "known: Celo2 as its authors released it",
    "celo.theta.state": "known: Celo as its authors released it",
    "celo_adam.theta.state": "known: Celo-Adam as its authors released it",
}


@pytest.mark.parametrize(("file", "expected"), RELEASED.items(), ids=RELEASED)
def test_released_files_are_known(shared, capsys, file, expected):
    assert command.main(["verify", str(shared / "checkpoints" / file)]) == 0
    assert expected in capsys.readouterr().out


def test_released_arrays_are_known_in_the_public_format(shared, capsys):
    save_weights("theta.state", load_checkpoint(shared / "checkpoints" / "celo2_released.safetensors"))
    assert command.main(["verify", "theta.state"]) == 0
    assert "known: Celo2 as its authors released it" in capsys.readouterr().out


def test_convert_goes_both_ways(capsys):
    save_weights("w.safetensors", make_weights(orthogonalize=False, ff_hidden_size=4, mlp_activation="tanh"))
    assert command.main(["convert", "w.safetensors", "theta.state"]) == 0
    hint = capsys.readouterr().out.splitlines()[-1]
    flags = hint[hint.index("--set") :].split()
    assert command.main(["convert", "theta.state", "back.safetensors", *flags]) == 0
    there, back = load_checkpoint("w.safetensors"), load_checkpoint("back.safetensors")
    assert back.config == there.config
    assert all((back.arrays[name] == array).all() for name, array in there.arrays.items())


def test_convert_needs_the_variant_of_an_upstream_file(capsys, here):
    save_weights("theta.state", make_weights())
    assert command.main(["convert", "theta.state", "w.safetensors"]) == 1
    assert "theta.state does not say which variant" in capsys.readouterr().err
    assert not (here / "w.safetensors").exists()


def test_fetch_writes_what_it_downloads(monkeypatch, here, capsys):
    save_weights("theta.state", make_weights())
    monkeypatch.setattr("celo2.weights.sources.download", lambda _repo_id, _max_bytes: here / "theta.state")
    assert command.main(["fetch", "owner/name", "--out", "new/folder", "--set", "orthogonalize=true"]) == 0
    weights = load_checkpoint("new/folder/name.safetensors")
    assert weights.provenance["hub"] == "owner/name"
    assert "new/folder/name.safetensors" in capsys.readouterr().out


OPTIONS = {
    "bool": ("orthogonalize=False", ("orthogonalize", False)),
    "list": ("initial_rms_decays=[0.9]", ("initial_rms_decays", [0.9])),
    "text": ("mlp_activation=tanh", ("mlp_activation", "tanh")),
    "number": ("rmsmult=2e-1", ("rmsmult", 0.2)),
}


@pytest.mark.parametrize(("text", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_set_reads_values(monkeypatch, text, expected):
    seen = {}
    save_weights("w.safetensors", make_weights())
    monkeypatch.setattr(
        command, "decode_weights", lambda *_, **options: seen.update(options) or make_weights()
    )
    assert command.main(["verify", "w.safetensors", "--set", text]) == 0
    assert seen == dict([expected])


USAGE = {
    "no command": ([], "COMMAND"),
    "no value": (["verify", "w", "--set", "orthogonalize"], "expected OPTION=VALUE"),
    "unknown option": (["verify", "w", "--set", "rms_mult=1"], "did you mean 'rmsmult'"),
}


@pytest.mark.parametrize(("argv", "message"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_explained(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [[], ["list"], ["inspect"], ["verify"], ["convert"], ["fetch"]], ids=str)
def test_help_has_examples(capsys, name):
    with pytest.raises(SystemExit) as stop:
        command.main([*name, "--help"])
    assert stop.value.code == 0
    assert "celo2 weights convert theta.state" in capsys.readouterr().out
