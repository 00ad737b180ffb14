"""Reads the weight files of the public PyTorch port, in which Celo2 and ELO-Celo2 were released.

They are safetensors with the state of the port's network under its own names: `w0.0` … `w0.13`, `b0`,
`dense_w.0`, `dense_b.0` and so on, with the shapes and orientation of this package's arrays. They state
neither the optimizer nor its options; the port's releases have those of `PORT_CONFIG`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from celo2.config import RuleConfig
from celo2.weights.schema import check_shapes, read_shapes

PORT_CONFIG = RuleConfig()
"""The options implied by files of this format: Celo2, with Newton–Schulz, and the published decays."""

PORT_FORM = "the public PyTorch port's"

_LAYER = re.compile(r"([wb])([1-9]\d*)")
_GROUP_OR_LAYER = re.compile(r"w0\.\d+|dense_[wb]\.\d+")


def port_name(name: str) -> str:
    """Returns the port's name of an array.

    Example:
        >>> [port_name(name) for name in ("w0__13", "b0", "w1", "b2")]
        ['w0.13', 'b0', 'dense_w.0', 'dense_b.1']
    """
    layer = _LAYER.fullmatch(name)
    return f"dense_{layer[1]}.{int(layer[2]) - 1}" if layer else name.replace("__", ".")


def is_port_form(names: Iterable[str]) -> bool:
    """Returns whether arrays have the port's names; some may be missing."""
    return any(map(_GROUP_OR_LAYER.fullmatch, names))


def from_port(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of a port file under this package's names.

    Raises:
        ValueError: An array is missing, unexpected or misshapen; the message uses the port's name.
    """
    shapes = PORT_CONFIG.weight_shapes()
    expected = {port_name(name): shape for name, shape in shapes.items()}
    check_shapes(read_shapes(arrays), expected, f"weights in {PORT_FORM} form")
    return {name: arrays[port_name(name)] for name in shapes}
