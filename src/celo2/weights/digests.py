"""Content digests of weight files: computation, verification on loading, and lookup of released files.

A digest is the SHA-256 of the metadata texts and of every array's name, shape and bytes. It is computed
from the file's content rather than from decoded objects, so it stays valid when a later version adds
options. It detects damage but is not a signature: anyone who changes a file can recompute its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

import numpy as np

DIGEST = "sha256"  # the metadata field of the digest
KNOWN_FILE = "known.json"  # in celo2/pretrained: {digest: fields of `Known`}


class Known(NamedTuple):
    """Describes a released file that the package knows by its digest.

    Attributes:
        what: The description.
        variant: The variant of the rule, "celo2" or "celo2-base", if the file does not state it; its other
            options are the published ones. "": the file states its own options.
    """

    what: str
    variant: str = ""


class Integrity(NamedTuple):
    """Result of verifying a weight file's content.

    Attributes:
        digest: The digest of the content that was read, in hexadecimal.
        stored: Whether the file contains the same digest.
        known: The released file with this digest, or None.
    """

    digest: str
    stored: bool
    known: Known | None

    @property
    def verified(self) -> bool:
        """Whether the content is known to be unchanged since it was written."""
        return self.stored or self.known is not None

    def __str__(self) -> str:
        """Describes the result for users in a clause, without the digest."""
        known = f"known: {self.known.what}" if self.known else ""
        if self.stored:
            return f"as it was written{f' ({known})' if known else ''}"
        return known or "not verifiable, the file carries no digest"


def compute_digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Returns the digest of a file's content, in hexadecimal, excluding any digest in the metadata.

    Args:
        arrays: The float32 arrays by name.
        metadata: The metadata, text by name; empty for a format without metadata.
    """
    texts = {name: text for name, text in metadata.items() if name != DIGEST}
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps([texts, shapes], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(arrays[name].astype("<f4").tobytes())
    return digest.hexdigest()


def check_digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Integrity:
    """Checks a file's content against the digest it contains, if any.

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
    return Integrity(digest, stored is not None, known_digests().get(digest))


def known_digests() -> dict[str, Known]:
    """Reads what is known about shipped and publicly released weights, by digest."""
    text = (resources.files("celo2") / "pretrained" / KNOWN_FILE).read_text(encoding="utf-8")
    return {digest: Known(**fields) for digest, fields in json.loads(text).items()}
