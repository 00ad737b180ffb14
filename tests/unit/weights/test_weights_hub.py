"""Weights from the Hugging Face hub, by a stand-in for its library: no test needs the network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from celo2.commands import weights as command
from celo2.config import RuleConfig
from celo2.weights.checkpoint import (
    Weights,
    decode_weights,
    load_checkpoint,
    save_weights,
)
from celo2.weights.sources import RELEASED, fetch_file
from helpers.weights_examples import make_arrays, make_weights, save_port


class RepositoryNotFoundError(OSError):
    """What the hub's library raises for a repository that does not exist."""


class Hub:
    """The four names of huggingface_hub that are used, over a local folder."""

    errors = SimpleNamespace(RepositoryNotFoundError=RepositoryNotFoundError)

    def __init__(self, folder: Path) -> None:
        self.folder, self.online, self.cached, self.size = folder, True, False, 100
        self.repositories = {"owner/name"}
        self.__spec__ = SimpleNamespace(name="huggingface_hub")

    def model_info(self, repo_id: str, *, files_metadata: bool):
        assert files_metadata
        if not self.online:
            raise RuntimeError("offline")
        if repo_id not in self.repositories:
            raise RepositoryNotFoundError(repo_id)
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.*")]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=self.size) for name in names])

    def hf_hub_download(self, _: str, name: str) -> str:
        return str(self.folder / name)

    def snapshot_download(self, repo_id: str, *, local_files_only: bool) -> str:
        assert local_files_only
        if not self.cached:
            raise FileNotFoundError(repo_id)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    stand_in = Hub(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)  # type: ignore[arg-type]
    return stand_in


def test_hub_upstream_file_loads_with_its_options(hub):
    save_weights(hub.folder / "theta.state", make_weights())
    weights = load_checkpoint("owner/name", orthogonalize=False)
    assert weights.config.variant == "celo2-base"
    assert weights.provenance["hub"] == "owner/name"


def test_hub_prefers_safetensors_at_the_top(hub):
    (hub.folder / "old").mkdir()
    save_weights(hub.folder / "old" / "w.safetensors", make_weights())
    save_weights(hub.folder / "theta.state", make_weights())
    save_weights(hub.folder / "w.safetensors", make_weights(orthogonalize=False))
    assert load_checkpoint("owner/name").config.variant == "celo2-base"


def test_hub_is_not_asked_where_a_path_exists(hub, tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    save_weights(tmp_path / "owner" / "name" / "theta.state", make_weights())
    assert "hub" not in load_checkpoint("owner/name").provenance
    with pytest.raises(ValueError, match="found none"):
        decode_weights(fetch_file("owner/name", Weights.max_bytes), Weights)


def test_hub_offline_uses_its_cache(hub):
    save_weights(hub.folder / "w.safetensors", make_weights())
    hub.online, hub.cached = False, True
    assert load_checkpoint("owner/name").config.variant == "celo2"


def test_hub_offline_without_cache_says_so(hub):
    hub.online = False
    with pytest.raises(ConnectionError, match=r"'owner/name' is no file here.*cannot be reached \(offline\)"):
        load_checkpoint("owner/name")


def test_hub_repository_that_does_not_exist_says_so(hub):
    with pytest.raises(FileNotFoundError, match="neither a file here nor a repository"):
        load_checkpoint("owner/nothing")


def test_hub_repository_with_several_files_names_them(hub):
    save_weights(hub.folder / "a.safetensors", make_weights())
    save_weights(hub.folder / "b.safetensors", make_weights())
    with pytest.raises(ValueError, match=r"found a\.safetensors, b\.safetensors"):
        load_checkpoint("owner/name")


def test_hub_does_not_download_a_language_model(hub):
    save_weights(hub.folder / "model.safetensors", make_weights())
    hub.size = Weights.max_bytes + 1
    with pytest.raises(ValueError, match=r"model\.safetensors has 1048577 bytes"):
        load_checkpoint("owner/name")


def test_hub_without_its_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"'owner/name' is no file here.*celo2\[hub\]"):
        load_checkpoint("owner/name")


@pytest.mark.parametrize(("repository", "variant"), RELEASED.items(), ids=list(RELEASED.values()))
def test_released_repository_needs_no_options(hub, repository, variant):
    hub.repositories.add(repository)
    save_weights(hub.folder / "theta.state", make_weights())
    assert command.main(["fetch", repository, "--out", "fetched"]) == 0
    weights = load_checkpoint(f"fetched/{variant}.safetensors")
    assert weights.config == RuleConfig(orthogonalize=variant == "celo2")
    assert weights.stated == set(RuleConfig.option_names())
    assert weights.provenance["hub"] == repository
    assert weights.provenance["options"] == (
        f"not in the file; those of {variant} as published, since the file is known"
    )


def test_released_repository_is_of_its_variant(hub):
    hub.repositories.add("amoudgl/celo2-base")
    save_weights(hub.folder / "theta.state", make_weights())
    with pytest.raises(ValueError, match=r"these are Celo2-base weights \(orthogonalize=False"):
        load_checkpoint("amoudgl/celo2-base", orthogonalize=True)


def test_unknown_repository_is_told_what_to_name(hub, capsys):
    save_weights(hub.folder / "theta.state", make_weights())
    assert command.main(["fetch", "owner/name", "--out", "fetched"]) == 1
    message = capsys.readouterr().err
    assert "owner/name/theta.state does not say which variant" in message
    assert "--set orthogonalize=true (Celo2, with Newton–Schulz) or --set orthogonalize=false" in message
    assert not Path("fetched").exists()


def test_repository_of_the_port_is_fetched_without_options(hub):
    save_port(hub.folder / "model.safetensors", make_arrays())
    (hub.folder / "config.json").write_text("{}")
    assert command.main(["fetch", "owner/name"]) == 0
    weights = load_checkpoint("name.safetensors")
    assert weights.config == RuleConfig()
    assert (weights.provenance["hub"], weights.provenance["source"]) == ("owner/name", "model.safetensors")
    assert "the public PyTorch port's" in weights.provenance["options"]
