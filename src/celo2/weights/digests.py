"""Digests of weight files: written into ours, checked on loading, and looked up among those known.

A digest is the SHA-256 of the metadata's texts and of every array's name, shape and bytes. It is taken of
what the file says rather than of objects made from it, so that it stays valid when a later version has more
options. It finds damage; it is no signature, since whoever changes a file on purpose can compute its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

import numpy as np

DIGEST = "sha256"  # the metadata's field that holds it
KNOWN_FILE = "known.json"  # in celo2/pretrained: {digest: what has it}


class Integrity(NamedTuple):
    """Says what is known about a file's content.

    Attributes:
        digest: Of what was read, in hexadecimal.
        stored: Whether the file carries it.
        known_as: What this package knows under it, "" if nothing.
    """

    digest: str
    stored: bool
    known_as: str

    @property
    def verified(self) -> bool:
        """Whether what was read is what was written."""
        return self.stored or bool(self.known_as)

    def __str__(self) -> str:
        """A clause for a user, without the digest."""
        known = f"known: {self.known_as}" if self.known_as else ""
        if self.stored:
            return f"as it was written{f' ({known})' if known else ''}"
        return known or "not verifiable, the file carries no digest"


def compute_digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """The digest of a file's content, in hexadecimal; a digest among the metadata is left out.

    Args:
        arrays: float32, by name.
        metadata: Text by name; empty for a format without metadata.
    """
    texts = {name: text for name, text in metadata.items() if name != DIGEST}
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps([texts, shapes], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(arrays[name].astype("<f4").tobytes())
    return digest.hexdigest()


def check_digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Integrity:
    """Compares a file's content with the digest that it carries, if it carries one.

    Raises:
        ValueError: They differ.
    """
    digest = compute_digest(arrays, metadata)
    stored = metadata.get(DIGEST)
    if stored is not None and stored != digest:
        raise ValueError(
            f"the file is damaged: its content has the digest {digest}, expected {stored:.64}, which it "
            "carries; take an undamaged copy."
        )
    return Integrity(digest, stored is not None, known_digests().get(digest, ""))


def known_digests() -> dict[str, str]:
    """Reads the table of the shipped and the publicly released weights, by digest."""
    text = (resources.files("celo2") / "pretrained" / KNOWN_FILE).read_text(encoding="utf-8")
    return json.loads(text)
