"""What a rule of routing finds about one parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from celo2.routing.params import Param

__all__ = ["Finding", "Findings", "Role"]

Role = Literal["vector", "embedding", "position", "router", "head", "hidden"]


class Finding(NamedTuple):
    """What a parameter is, and why; an undecided finding is shown, not acted upon."""

    role: Role
    reason: str
    decided: bool = True


Findings = Mapping[Param, Finding]
