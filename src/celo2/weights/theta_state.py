"""Reads and writes `theta.state`, the public implementation's weight file, using only msgpack.

The file is one flax msgpack map. Arrays have the msgpack extension type 1, whose payload is again
msgpack: `(shape, dtype name, little-endian bytes)`. It contains no options of the rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import msgpack
import numpy as np

THETA_FILE = "theta.state"

_ARRAY_CODE = 1  # flax: 1 an array, 2 a complex number, 3 a NumPy scalar
_MAX_DEPTH = 4  # the tree of Celo2 has two levels, those of its predecessors three
_MAX_RANK = 4
_MAX_ENTRIES = 4096  # entries of one map
_CHUNKED = "__msgpack_chunked_array__"
_OTHER_FORMATS = (
    (b"\x80\x02", "a pickle, which is never loaded"),
    (b"\x80\x03", "a pickle, which is never loaded"),
    (b"\x80\x04", "a pickle, which is never loaded"),
    (b"\x80\x05", "a pickle, which is never loaded"),
    (b"PK\x03\x04", "a zip archive (a .npz or a PyTorch file), which is never loaded"),
)


def decode_theta(data: bytes) -> dict[str, Any]:
    """Decodes a `theta.state` file to nested dicts with float32 arrays at the leaves.

    Args:
        data: The whole file; its length limits the lengths that entries may declare.

    Raises:
        ValueError: The bytes are not such a file; the message states what was expected and found.
    """
    for magic, kind in _OTHER_FORMATS:
        if data.startswith(magic):
            raise ValueError(f"expected a flax msgpack file, found {kind}.")
    if data[8:9] == b"{":
        raise ValueError("expected a flax msgpack file, found safetensors; rename it to *.safetensors.")
    tree = _unpack(data, raw=False)
    if not isinstance(tree, dict):
        raise ValueError(f"expected a msgpack map at the top, found {type(tree).__name__}.")
    return _decode_node(tree, ())


def encode_theta(tree: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a `theta.state` file for nested dicts with float32 arrays at the leaves."""

    def pack(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {name: pack(child) for name, child in node.items()}
        return msgpack.ExtType(_ARRAY_CODE, _encode_array(node))

    return _pack(pack(tree))


def _unpack(data: bytes, *, raw: bool) -> Any:
    """Unpacks one msgpack object whose declared lengths cannot exceed the available bytes."""
    size = len(data)
    try:
        return msgpack.unpackb(
            data,
            raw=raw,
            strict_map_key=True,
            max_str_len=size,
            max_bin_len=size,
            max_ext_len=size,
            max_array_len=_MAX_ENTRIES,
            max_map_len=_MAX_ENTRIES,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(
            f"expected a flax msgpack file, found bytes that are not msgpack: {error}."
        ) from error


def _pack(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value))


def _decode_node(node: Any, path: tuple[str, ...]) -> Any:
    where = "/".join(path)
    if isinstance(node, msgpack.ExtType) and node.code == _ARRAY_CODE:
        return _decode_array(node.data, where)
    if not isinstance(node, dict):
        kind = f"extension type {node.code}" if isinstance(node, msgpack.ExtType) else type(node).__name__
        raise ValueError(f"{where} is of {kind}, expected an array (extension type {_ARRAY_CODE}).")
    if _CHUNKED in node:
        raise ValueError(f"{where} is a chunked array, expected the few hundred numbers of a Celo2 network.")
    if len(path) == _MAX_DEPTH:
        raise ValueError(f"{where} is a map, expected at most {_MAX_DEPTH} levels of maps.")
    return {str(name): _decode_node(child, (*path, f"{name!s:.40}")) for name, child in node.items()}


def _decode_array(payload: bytes, where: str) -> np.ndarray:
    parts = _unpack(payload, raw=True)
    if not isinstance(parts, list) or len(parts) != 3:
        raise ValueError(f"{where} is not packed as (shape, dtype, bytes).")
    shape, dtype, buffer = parts
    if dtype != b"float32":
        raise ValueError(f"{where} has dtype {dtype!r:.40}, expected float32; convert it first.")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_length(n) for n in shape):
        raise ValueError(f"{where} has shape {shape!r:.80}, expected at most {_MAX_RANK} positive lengths.")
    if not isinstance(buffer, bytes) or len(buffer) != 4 * math.prod(shape):
        found = f"{len(buffer)} bytes" if isinstance(buffer, bytes) else type(buffer).__name__
        raise ValueError(
            f"{where} has {found}, expected {4 * math.prod(shape)} for float32 of shape {shape}."
        )
    return np.frombuffer(buffer, "<f4").reshape(shape).astype(np.float32)


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _encode_array(array: np.ndarray) -> bytes:
    return _pack((array.shape, "float32", array.astype("<f4").tobytes()))
