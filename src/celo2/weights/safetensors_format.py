"""Reads and writes this package's weight files: safetensors with options and provenance as metadata.

The metadata are texts: the format, the contract version, the options and the provenance (JSON objects), and
`sha256`, the digest of everything else, which older files lack. The field names of rule files and zoo files
differ, see `_Layout`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import safetensors

from celo2.config import CONTRACT_VERSION, RuleConfig, Schema
from celo2.weights.digests import DIGEST, check_digest, compute_digest
from celo2.zoo.specs import MEMBERS

T = TypeVar("T")


class Contents(NamedTuple):
    """Content of a weight file, in the order of the arguments of `celo2.weights.AnyWeights`."""

    arrays: Mapping[str, np.ndarray]
    config: Schema
    provenance: Mapping[str, str]
    stated: frozenset[str]
    contract_version: int


class _Layout(NamedTuple):
    """Metadata of one format.

    Attributes:
        format: The value of the field with this name.
        version: The name of the contract version field.
        options: The name of the options field.
        optimizer: The name of the field for the optimizer; None for the rule.
        complete: Whether a file states every option, rather than only those stated by its source.
    """

    format: str
    version: str
    options: str
    optimizer: str | None
    complete: bool


_RULE = _Layout("celo2-weights", "contract_version", "config", None, complete=True)
_ZOO = _Layout("celo2-zoo-weights", "version", "options", "optimizer", complete=False)
_LAYOUTS = (_RULE, _ZOO)


def decode_safetensors(data: bytes) -> Contents:
    """Decodes a weight file, without checking that its arrays fit its options.

    Raises:
        ValueError: The bytes are not a weight file of this package, or are damaged; the message states what
            was expected and found.
    """
    arrays, metadata = parse_arrays(data)
    check_digest(arrays, metadata)
    return Contents(arrays, *_decode_metadata(metadata))


def encode_safetensors(contents: Contents) -> bytes:
    """Returns the bytes of a weight file."""
    config = contents.config
    layout = _RULE if config.kind == RuleConfig.kind else _ZOO
    metadata = {
        "format": layout.format,
        layout.version: str(contents.contract_version),
        layout.options: config.to_json(None if layout.complete else contents.stated),
        "provenance": json.dumps(dict(contents.provenance), sort_keys=True),
    }
    if layout.optimizer:
        metadata[layout.optimizer] = config.kind
    return encode_arrays(contents.arrays, dict(sorted(metadata.items())))


def parse_arrays(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Decodes the arrays and metadata of a safetensors file, without checking its digest.

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


def check_fields(metadata: Mapping[str, str], known: Iterable[str]) -> None:
    """Raises a ValueError for unknown metadata names: a damaged name would silently drop its field."""
    unknown = sorted(metadata.keys() - set(known))
    if unknown:
        raise ValueError(
            f"unknown metadata {', '.join(f'{name!r:.40}' for name in unknown[:4])}, expected only "
            f"{', '.join(sorted(known))}; the file is damaged, or a newer celo2 wrote it."
        )


def encode_arrays(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a safetensors file with these float32 arrays, metadata and their digest.

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


def _decode_metadata(metadata: Mapping[str, str]) -> tuple[Schema, dict[str, str], frozenset[str], int]:
    layout = next((layout for layout in _LAYOUTS if layout.format == metadata.get("format")), None)
    if layout is None:
        formats = " or ".join(f"format={layout.format!r}" for layout in _LAYOUTS)
        found = repr(metadata["format"])[:40] if "format" in metadata else "none"
        raise ValueError(f"not a weight file of celo2: expected the metadata {formats}, found {found}.")
    version = metadata.get(layout.version, "")
    if not re.fullmatch(r"[0-9]{1,9}", version):
        raise ValueError(f"expected a whole number as {layout.version}, found {version!r:.40}.")
    check_version(int(version))  # first, since a newer contract may have other fields
    check_fields(metadata, {"format", *filter(None, layout[1:4]), "provenance", DIGEST})
    kind = metadata.get(layout.optimizer, "") if layout.optimizer else RuleConfig.kind
    if layout.optimizer and kind not in MEMBERS:
        raise ValueError(f"weights of {kind!r:.40}, expected one of {', '.join(MEMBERS)}.")
    schema = MEMBERS.get(kind, RuleConfig)
    config = _read(metadata, layout.options, schema.from_json)
    stated = schema.option_names() if layout.complete else json.loads(metadata[layout.options])
    provenance = _read(metadata, "provenance", json.loads)
    if not isinstance(provenance, dict):
        raise ValueError(f"provenance must be a JSON object, found {type(provenance).__name__}.")
    return config, provenance, frozenset(stated), int(version)


def _read(metadata: Mapping[str, str], field: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(metadata[field])
    except KeyError as error:
        raise ValueError(f"the metadata lack {error}.") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"bad metadata, {field}: {error!s:.300}") from error
