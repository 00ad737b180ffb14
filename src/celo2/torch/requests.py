"""What the update of a divided tensor asks of the other processes, one request after the other."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Asking", "Matrices", "Request", "Sums"]


class Sums(NamedTuple):
    """Asks for these tensors, summed over the shards."""

    values: list[Tensor]


class Matrices(NamedTuple):
    """Asks for the tensor of which these are this process's parts, orthogonalised: its parts again."""

    parts: list[Tensor]


Request = Sums | Matrices
Asking = Generator[Request, list[Tensor], Any]
