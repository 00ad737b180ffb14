"""Publishing of weights: the prepared repository, and its upload to a stand-in of the hub."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from celo2 import zoo
from celo2.commands.weights import main
from celo2.weights.checkpoint import load_checkpoint, save_weights
from helpers.weights_examples import make_weights


class Hub:
    """The part of huggingface_hub that an upload uses; `refusal` is what it raises."""

    def __init__(self, refusal: str = "") -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refusal = refusal
        self.__spec__ = SimpleNamespace(name="huggingface_hub")

    def HfApi(self) -> Hub:
        return self

    def create_repo(self, repo_id: str, **options: Any) -> None:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.calls.append((repo_id, options))

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> str:
        names = sorted(path.name for path in folder_path.iterdir() if path.name in allow_patterns)
        self.calls.append((repo_id, {"files": names, "message": commit_message}))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)  # type: ignore[arg-type]
    return stand_in


def _front(card: str) -> dict[str, Any]:
    head = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert head
    return yaml.safe_load(head[1])


@pytest.mark.parametrize("name", ["celo2", "celo2-base"])
def test_shipped_weights_get_their_card_with_the_hubs_front_matter(name: str, tmp_path: Path) -> None:
    assert main(["publish", name, f"me/{name}", "--out", str(tmp_path)]) == 0
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert _front(card)["license"] == "mit"
    assert "optimizer" in _front(card)["tags"]
    assert f"# Model card: {name}" in card
    assert "How they were made" in card
    assert "](../" not in card  # links into this repository would be dead there
    published, shipped = load_checkpoint(tmp_path / f"{name}.safetensors"), load_checkpoint(name)
    assert published.config == shipped.config
    assert all((published.arrays[key] == array).all() for key, array in shipped.arrays.items())


def test_the_cards_calls_are_those_of_the_variant(tmp_path: Path) -> None:
    for orthogonalize, jax, torch in (
        (True, "celo2.celo2(", "import Celo2\n"),
        (False, "celo2.celo2_base(", "Celo2Base"),
    ):
        save_weights(tmp_path / "w.safetensors", make_weights(orthogonalize=orthogonalize))
        assert (
            main(["publish", str(tmp_path / "w.safetensors"), "me/mine", "--out", str(tmp_path / "out")]) == 0
        )
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert jax in card
        assert torch in card
        assert 'weights="me/mine"' in card
        assert "| initial_momentum_decays | `[0.9, 0.99, 0.999]` |" in card


def test_a_predecessors_card_names_its_kind(tmp_path: Path) -> None:
    import jax

    theta: Any = zoo.init_theta("celo_adam", jax.random.key(0), lstm_size=3)
    path = tmp_path / "w.state"
    zoo.save_weights(path, zoo.ZooWeights(theta, zoo.PRESETS["celo_adam"].replace(lstm_size=3)))
    assert main(["publish", str(path), "me/mine", "--out", str(tmp_path / "out")]) == 0
    assert 'celo2.zoo.make("celo_adam", weights="me/mine"' in (tmp_path / "out" / "README.md").read_text()


def test_push_makes_the_repository_and_uploads_both_files(hub: Hub, tmp_path: Path, capsys) -> None:
    (tmp_path / "secret.env").write_text("TOKEN=1")  # only what was prepared is uploaded
    words = ["publish", "celo2", "me/celo2", "--out", str(tmp_path), "--push", "--private"]
    assert main(words) == 0
    assert hub.calls == [
        ("me/celo2", {"private": True, "exist_ok": True}),
        ("me/celo2", {"files": ["README.md", "celo2.safetensors"], "message": "Weights of celo2"}),
    ]
    assert "uploaded: https://hub/me/celo2/commit/1" in capsys.readouterr().out


def test_without_push_nothing_is_uploaded(hub: Hub, tmp_path: Path, capsys) -> None:
    assert main(["publish", "celo2", "me/celo2", "--out", str(tmp_path)]) == 0
    assert hub.calls == []
    assert "nothing was uploaded" in capsys.readouterr().out


def test_a_refused_upload_keeps_the_files_and_says_what_to_do(hub: Hub, tmp_path: Path, capsys) -> None:
    hub.refusal = "401 Unauthorized"
    assert main(["publish", "celo2", "me/celo2", "--out", str(tmp_path), "--push"]) == 1
    line = capsys.readouterr().err
    assert "401 Unauthorized" in line
    assert "HF_TOKEN" in line
    assert (tmp_path / "celo2.safetensors").exists()


def test_a_readme_of_something_else_is_kept(tmp_path: Path, capsys) -> None:
    (tmp_path / "README.md").write_text("# My project\n")
    assert main(["publish", "celo2", "me/celo2", "--out", str(tmp_path)]) == 1
    assert "is no model card of celo2" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "# My project\n"


@pytest.mark.parametrize("name", ["celo2", "me/..", "me/", "../me"])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys
) -> None:
    assert main(["publish", "celo2", name, "--out", str(tmp_path / "out")]) == 1
    assert "expected a repository OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
