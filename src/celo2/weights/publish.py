"""Prepares a repository of the Hugging Face hub with weights and their model card, and uploads it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celo2._utils.extras import require
from celo2._utils.files import write_atomic
from celo2.weights.checkpoint import SHIPPED, AnyWeights, ZooWeights, save_weights
from celo2.weights.sources import shipped_card

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
TAGS = ("optimizer", "learned-optimizer", "meta-learning", "celo2", "jax", "optax", "pytorch")
LIBRARY = "library_name: celo2"  # in a card's front matter
LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#)[^)]*\)")  # of Markdown, to a file of this repository


def prepare_repository(
    weights: AnyWeights[Any], repo_id: str, folder: Path, *, source: str = "", licence: str = "mit"
) -> list[Path]:
    """Writes the files of a hub repository: the weights, and a model card with the hub's front matter.

    Args:
        weights: The weights.
        repo_id: The repository, `"owner/name"`.
        folder: The output folder, made if needed. Files with the same names are replaced.
        source: Where the weights are from; shipped weights have their own card.
        licence: The licence's identifier on the hub.

    Returns:
        The paths of the weights and the card.

    Raises:
        ValueError: The repository is not of the form `owner/name`, or the folder has its own README.md.
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"expected a repository OWNER/NAME, got {repo_id!r}.")
    readme = folder / "README.md"
    if readme.exists() and LIBRARY not in readme.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{readme} is no model card of celo2 and would be replaced; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{repo_id.rpartition('/')[2]}.safetensors", folder / "README.md"]
    save_weights(files[0], weights)
    write_atomic(files[1], make_card(weights, repo_id, source=source, licence=licence).encode())
    return files


def make_card(weights: AnyWeights[Any], repo_id: str, *, source: str = "", licence: str = "mit") -> str:
    """Returns the model card as Markdown; arguments as in `prepare_repository`."""
    front = [
        "---",
        f"license: {licence}",
        LIBRARY,
        "tags:",
        *(f"- {tag}" for tag in TAGS),
        "---",
    ]
    parts = ["\n".join(front), _describe_use(weights, repo_id)]
    if source in SHIPPED:
        parts.insert(1, LINK.sub(r"\1", shipped_card(source)).strip())
    else:
        parts.insert(1, f"# {repo_id.rpartition('/')[2]}\n\nWeights of {_variant(weights)}.")
        parts.append(_describe_origin(weights))
    parts.append(_describe_options(weights))
    return "\n\n".join(parts) + "\n"


def upload(repo_id: str, files: Sequence[Path], *, private: bool = False) -> str:
    """Makes the repository if needed, uploads the files, and returns the URL of the commit.

    The token is the hub's own: `HF_TOKEN`, or the one stored by `hf auth login`.

    Args:
        repo_id: The repository, `"owner/name"`.
        files: The files of `prepare_repository`; nothing else in their folder is uploaded.
        private: Whether a new repository is private.

    Raises:
        ImportError: huggingface_hub is not installed.
        ConnectionError: The hub cannot be reached, or refuses the upload.
    """
    require("hub", "huggingface_hub")
    import huggingface_hub as hub

    api = hub.HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repo_id,
                folder_path=files[0].parent,
                allow_patterns=[file.name for file in files],
                commit_message="Weights of celo2",
            )
        )
    except Exception as error:  # the hub's HTTP library differs between versions, and so do its errors
        raise ConnectionError(
            f"{repo_id} was not uploaded ({error}); the files are in {files[0].parent}. A token comes from "
            "HF_TOKEN or hf auth login."
        ) from error


def _variant(weights: AnyWeights[Any]) -> str:
    kind = weights.kind if isinstance(weights, ZooWeights) else weights.config.variant
    return f"{kind}, {weights.config.num_parameters} numbers"


def _describe_use(weights: AnyWeights[Any], repo_id: str) -> str:
    lines = ["## Use", "", "```python", "import celo2", ""]
    if isinstance(weights, ZooWeights):
        lines += [f'optimizer = celo2.zoo.make("{weights.kind}", weights="{repo_id}", num_steps=1000)', "```"]
        return "\n".join(lines)
    call = "celo2" if weights.config.orthogonalize else "celo2_base"
    torch = "Celo2" if weights.config.orthogonalize else "Celo2Base"
    lines += [
        f'optimizer = celo2.{call}(learning_rate, weights="{repo_id}")  # Optax',
        "```",
        "",
        "```python",
        f"from celo2.torch import {torch}",
        "",
        f'optimizer = {torch}(model, lr=1e-3, weights="{repo_id}")',
        "```",
        "",
        "`pip install 'celo2[jax,hub]'` or `'celo2[torch,hub]'`.",
    ]
    return "\n".join(lines)


def _describe_origin(weights: AnyWeights[Any]) -> str:
    rows = [f"| {name} | {_cell(text)} |" for name, text in weights.provenance.items()]
    return "\n".join(["## How they were made", "", "| | |", "|---|---|", *(rows or ["| | not recorded |"])])


def _describe_options(weights: AnyWeights[Any]) -> str:
    config = weights.config
    rows = [f"| {name} | `{json.dumps(getattr(config, name))}` |" for name in config.option_names()]
    return "\n".join(["## Options of the rule", "", "| option | value |", "|---|---|", *rows])


def _cell(text: str) -> str:
    """Escapes a cell of a Markdown table."""
    return (
        "".join(char if char.isprintable() else " " for char in text).replace("|", r"\|").replace("<", "&lt;")
    )
