"""Reads and writes this package's weight files: safetensors with options and provenance as metadata.

The metadata are five texts: `format`, `contract_version`, `config` and `provenance` (JSON objects), and
`sha256`, the digest of everything else, which older files lack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import safetensors

from celo2.config import CONTRACT_VERSION, RuleConfig
from celo2.weights.digests import DIGEST, check_digest, compute_digest

_FORMAT = "celo2-weights"
_FIELDS = frozenset({"format", "contract_version", "config", "provenance", DIGEST})
ZOO_FORMAT = "celo2-zoo-weights"  # of the optimizers in `celo2.zoo`


class Contents(NamedTuple):
    """Content of a weight file: float32 arrays by name, options, provenance by field, contract version."""

    arrays: Mapping[str, np.ndarray]
    config: RuleConfig
    provenance: Mapping[str, str]
    contract_version: int


def decode_safetensors(data: bytes) -> Contents:
    """Decodes a weight file, without checking that its arrays fit its options.

    Raises:
        ValueError: The bytes are not a weight file of this package; the message states what was expected
            and found.
    """
    arrays, metadata = decode_arrays(data)
    return Contents(arrays, *_decode_metadata(metadata))


def decode_arrays(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Decodes the float32 arrays and the metadata of a safetensors file, and checks its digest.

    Raises:
        ValueError: The bytes are not a safetensors file, an array has another dtype, or the content does not
            match the digest that the file carries.
    """
    arrays, metadata = parse_arrays(data)
    check_digest(arrays, metadata)
    return arrays, metadata


def parse_arrays(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Decodes the arrays and the metadata like `decode_arrays`, without checking the digest.

    Raises:
        ValueError: The bytes are not a safetensors file, or an array has another dtype.
    """
    try:
        entries = safetensors.deserialize(data)  # checks the header, the offsets and the lengths
    except safetensors.SafetensorError as error:
        raise ValueError(f"expected a safetensors file, found {error}.") from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] != "F32":
            raise ValueError(
                f"{name:.80} has dtype {entry['dtype']}, expected F32 (float32); convert it first."
            )
        arrays[name] = np.frombuffer(entry["data"], "<f4").reshape(entry["shape"]).astype(np.float32)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, header.get("__metadata__") or {}


def encode_safetensors(contents: Contents) -> bytes:
    """Returns the bytes of a weight file."""
    metadata = {
        "config": contents.config.to_json(),
        "contract_version": str(contents.contract_version),
        "format": _FORMAT,
        "provenance": json.dumps(dict(contents.provenance), sort_keys=True),
    }
    return encode_arrays(contents.arrays, metadata)


def check_fields(metadata: Mapping[str, str], known: Iterable[str]) -> None:
    """Raises a ValueError for unknown metadata names: a damaged name would silently drop its field."""
    unknown = sorted(metadata.keys() - set(known))
    if unknown:
        raise ValueError(
            f"unknown metadata {', '.join(f'{name!r:.40}' for name in unknown[:4])}, expected only "
            f"{', '.join(sorted(known))}; the file is damaged, or a newer celo2 wrote it."
        )


def encode_arrays(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a safetensors file with these float32 arrays, these metadata and their digest.

    The safetensors library writes metadata in random order, so its files have no reproducible checksum; the
    header is therefore written here: its length in eight bytes, then JSON, padded to a multiple of eight.
    """
    header: dict[str, object] = {"__metadata__": {**metadata, DIGEST: compute_digest(arrays, metadata)}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + 4 * array.size
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(array.astype("<f4").tobytes() for array in arrays.values())
    return len(text).to_bytes(8, "little") + text + body


def check_version(version: int) -> None:
    """Raises a ValueError for a version of the feature table that this release does not know."""
    if version > CONTRACT_VERSION:
        raise ValueError(
            f"contract version {version} is newer than {CONTRACT_VERSION}, the last known; upgrade celo2."
        )
    if version < 1:
        raise ValueError(f"contract version must be at least 1, found {version}.")


def _decode_metadata(metadata: Mapping[str, str]) -> tuple[RuleConfig, dict[str, str], int]:
    if metadata.get("format") == ZOO_FORMAT:
        kind = metadata.get("optimizer", "another optimizer")
        raise ValueError(
            f"weights of {kind!r:.40}, not of Celo2; load them with celo2.zoo.load_weights, or use "
            "celo2.zoo.make."
        )
    if metadata.get("format") != _FORMAT:
        found = repr(metadata["format"])[:40] if "format" in metadata else "none"
        raise ValueError(
            f"not a weight file of celo2: expected the metadata format={_FORMAT!r}, found {found}."
        )
    version = metadata.get("contract_version", "")
    if not re.fullmatch(r"[0-9]{1,9}", version):
        raise ValueError(f"expected a whole number as contract_version, found {version!r:.40}.")
    check_version(int(version))  # first, since a newer contract may have other fields
    check_fields(metadata, _FIELDS)
    try:
        config = RuleConfig.from_json(metadata["config"])
        provenance = json.loads(metadata["provenance"])
    except KeyError as error:
        raise ValueError(f"the metadata lack {error}.") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"bad metadata: {error!s:.300}") from error
    if not isinstance(provenance, dict):
        raise ValueError(f"provenance must be a JSON object, found {type(provenance).__name__}.")
    return config, provenance, int(version)
