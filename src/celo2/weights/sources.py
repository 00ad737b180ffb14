"""Finds weight files: in the package, on disk, and on the Hugging Face hub (the `hub` extra)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from celo2._utils.extras import require
from celo2._utils.files import read_limited
from celo2.weights.theta_state import THETA_FILE

SHIPPED = ("celo2", "celo2-base")
OURS, UPSTREAM = ".safetensors", ".state"  # suffixes of the two formats
RELEASED = {"amoudgl/celo2": "celo2", "amoudgl/celo2-base": "celo2-base"}
"""The variants of the hub repositories of Celo2's authors, whose files do not state them."""

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_REMEDY = "download the file and give its path, or use the shipped 'celo2' or 'celo2-base'"


class WeightFile(NamedTuple):
    """Content and origin of a weight file.

    Attributes:
        data: The bytes of the whole file.
        name: The name for messages; its suffix indicates the format.
        hub: The hub repository it was downloaded from, or None.
        shipped: Whether it is part of this package.
    """

    data: bytes
    name: str
    hub: str | None = None
    shipped: bool = False


def looks_like_source(text: str) -> bool:
    """Returns whether a text is the path of a weight file or its folder, or looks like a hub repository.

    A path that contains a colon, which could be something else, must exist.
    """
    if ":" in text and not os.path.exists(text):  # unlike Path's, returns False for invalid paths
        return False
    is_file = text.endswith((OURS, UPSTREAM)) or os.path.isfile(os.path.join(text, THETA_FILE))
    return is_file or _REPO_ID.fullmatch(text) is not None


def find_file(source: str | os.PathLike[str], max_bytes: int) -> WeightFile:
    """Finds the file of a source: a shipped name, a path, a folder, or a hub repository, in this order.

    Raises:
        ValueError: The folder has no weights, or the file is too large or not regular; see `download`.
        FileNotFoundError: The source does not exist.
        ConnectionError, ImportError: See `download`.
    """
    if isinstance(source, str) and source in SHIPPED:
        file = shipped_file(source)
        return WeightFile(file.read_bytes(), str(file), shipped=True)
    path = Path(source)
    if path.is_dir():
        if not (path / THETA_FILE).is_file():
            raise ValueError(f"{path} is a folder without {THETA_FILE}; name a weight file.")
        path = path / THETA_FILE
    elif not path.exists():
        if isinstance(source, str) and _REPO_ID.fullmatch(source) and path.suffix not in (OURS, UPSTREAM):
            return fetch_file(source, max_bytes)
        raise FileNotFoundError(
            f"no weights at {str(source)!r}; expected a path, one of {', '.join(map(repr, SHIPPED))}, "
            "or a hub repository 'owner/name'."
        )
    return WeightFile(read_limited(path, max_bytes), str(path))


def fetch_file(repo_id: str, max_bytes: int) -> WeightFile:
    """Fetches the weight file of a hub repository, ignoring local files; see `download`."""
    path = download(repo_id, max_bytes)
    return WeightFile(read_limited(path, max_bytes), f"{repo_id}/{path.name}", repo_id)


def shipped_file(name: str) -> Traversable:
    """Returns the file of shipped weights inside the package; `name` is one of `SHIPPED`.

    Raises:
        FileNotFoundError: This installation lacks it.
    """
    file = _pretrained() / f"{name}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"no shipped weights {name!r} at {file}; reinstall celo2, or give a file.")
    return file


def shipped_card(name: str) -> str:
    """Returns the model card of shipped weights, Markdown; `name` is one of `SHIPPED`."""
    return (_pretrained() / f"{name}.md").read_text(encoding="utf-8")


def download(repo_id: str, max_bytes: int) -> Path:
    """Downloads a repository's weight file unless the hub's cache has it; returns its local path.

    Args:
        repo_id: The repository, `"owner/name"`.
        max_bytes: The size limit; a larger file is not downloaded.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: The hub has no such repository.
        ConnectionError: The hub cannot be reached and its cache does not hold the repository.
        ValueError: The repository holds no weight file, several, or one that is too large.
    """
    try:
        require("hub", "huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"{repo_id!r} is no file here, so it is taken for a hub repository; {error}"
        ) from None
    import huggingface_hub as hub

    try:
        files = hub.model_info(repo_id, files_metadata=True).siblings or []
    except hub.errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{repo_id!r} is neither a file here nor a repository of the hub.") from error
    except Exception as error:  # the hub's HTTP library differs between versions, and so do its errors
        return _from_cache(repo_id, error)
    sizes = {file.rfilename: file.size for file in files}
    name = _pick(repo_id, sizes)
    if (sizes[name] or 0) > max_bytes:
        raise ValueError(f"{repo_id}/{name} has {sizes[name]} bytes, expected at most {max_bytes}.")
    return Path(hub.hf_hub_download(repo_id, name))


def _pretrained() -> Traversable:
    return resources.files("celo2") / "pretrained"


def _from_cache(repo_id: str, reason: Exception) -> Path:
    """Returns the weight file of a repository that was downloaded before, for offline use."""
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(repo_id, local_files_only=True))
    except Exception:
        raise ConnectionError(
            f"{repo_id!r} is no file here, and the Hugging Face hub cannot be reached ({reason}); {_REMEDY}."
        ) from reason
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return folder / _pick(repo_id, names)


def _pick(repo_id: str, names: Iterable[str]) -> str:
    """Selects the one weight file among the names, preferring the top folder, then this package's format."""
    paths = sorted(PurePosixPath(name) for name in names)
    weights = [path for path in paths if path.suffix == ".safetensors" or path.name == THETA_FILE]
    top = [path for path in weights if len(path.parts) == 1] or weights
    best = [path for path in top if path.suffix == ".safetensors"] or top
    if len(best) != 1:
        found = ", ".join(map(str, best)) or "none"
        raise ValueError(f"{repo_id} must hold one *.safetensors or {THETA_FILE}, found {found}; {_REMEDY}.")
    return str(best[0])
