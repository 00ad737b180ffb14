"""Relations between the parameters of a network: repeated layers, its body, and possible readers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from celo2.routing.names import (
    is_attention,
    is_body,
    is_decay,
    is_list,
    is_query,
    make_name,
)
from celo2.routing.params import Param

PARTS = (1, 2, 3, 4)  # numbers of parts into which an output may be split: gated MLP, query-key-value, gates
COLORS = 4  # a convolution with so few input or output channels is at an end of the network
Place = tuple[str, ...]
Role = Literal["vector", "embedding", "position", "router", "head", "hidden"]


class Finding(NamedTuple):
    """The role of a parameter and the reason for it; an undecided finding is reported, not acted upon."""

    role: Role
    reason: str
    decided: bool = True


Findings = Mapping[Param, Finding]


class Network:
    """The parameters of one network and their relations.

    Attributes:
        params: All parameters, in their framework's order.
        depth: The number of leading names that all paths share, such as a wrapper's.
        under: The parameters in each module, at any depth.
        matrices: The parameters that multiply a layer's input: projections and stacks of them, no tables.
        is_part: Whether these are known to be only a part of a network, whose outputs others may read.
    """

    def __init__(self, params: Sequence[Param], *, is_part: bool = False):
        self.params = params
        self.is_part = is_part
        self.depth = _common_depth(params)
        self.under: dict[Place, list[Param]] = defaultdict(list)
        for param in params:
            for length in range(len(param.places)):
                self.under[param.places[:length]].append(param)
        own = [param for param in params if not param.owner]
        self.matrices = [param for param in own if is_projection(param)]
        self._alike = Counter(_pattern(param) for param in params)
        self._widths = {param.shape[-1] for param in own if param.kind == "norm" and param.shape}
        self._mixers = _find_mixers(own)
        self._units: dict[Place, set[Place]] = defaultdict(set)
        for param in self.matrices:
            for length in range(len(param.unit)):
                self._units[param.unit[: length + 1]].add(param.unit)

    def is_repeated(self, param: Param) -> bool:
        """Returns whether several numbered layers have a parameter like this one."""
        return self._alike[_pattern(param)] > 1

    def in_body(self, param: Param) -> bool:
        """Returns whether a parameter is in attention, a block or a numbered layer of several matrices."""
        if self._is_in_mixer(param):
            return True
        return any(self.starts_body(param, index) for index in range(len(param.names) - param.is_kernel))

    def starts_body(self, param: Param, index: int) -> bool:
        """Returns whether the name at this index of a parameter's path begins the body of the network."""
        names = param.names
        if is_body(names[index]) or (is_query(names[index]) and self._is_in_mixer(param)):
            return True
        if names[index].is_class or not is_list(names, index):
            return False
        place = tuple(name.text for name in names[: index + 1] if not name.is_class)
        return len(self._units[place]) > 1

    def _is_in_mixer(self, param: Param) -> bool:
        holders = {param.places[:length] for length in range(len(param.unit))}
        return not self._mixers.isdisjoint(holders) or any(map(is_attention, param.names))

    def add_widths(self, widths: set[int]) -> None:
        """Adds widths of features known to be read, such as those to which a table adds its vectors."""
        self._widths |= widths

    def is_width(self, size: int) -> bool:
        """Returns whether a norm or a table has this size."""
        return size in self._widths

    def readers(self, param: Param, among: Sequence[Param], *, concatenated: bool = False) -> Iterator[Param]:
        """Yields the matrices that could read this one's output: whole, in parts, flattened or unflattened.

        Args:
            param: The parameter whose output is read.
            among: The candidates.
            concatenated: Whether convolutions may read several outputs of its size side by side.
        """
        for other in among:
            if other is param:
                continue
            if _could_read(other, param) or (concatenated and _could_read_several(other, param)):
                yield other

    def looks_fused(self, param: Param) -> bool:
        """Returns whether sibling layers read a half or a third of its output, and none reads all of it."""
        if param.kind not in ("linear", "matrix") or param.owner:
            return False
        beside = [other for other in self.under[param.holder] if other.holder == param.holder]
        readers = [other for other in beside if other is not param and other.kind in ("linear", "matrix")]
        sizes = {other.inputs for other in readers if other.inputs}
        parts = {size * count for size in sizes for count in (2, 3)}
        return param.outputs in parts - sizes - {param.inputs}


def is_projection(param: Param) -> bool:
    """Returns whether a parameter multiplies its layer's input."""
    return param.matrix is not None and param.kind not in ("embedding", "norm", "depthwise", "bare")


def natural_order(param: Param) -> list[tuple[int, str]]:
    """Returns a sort key that puts `layers.10` after `layers.9`, and numbers before names."""
    parts = re.split(r"(\d+)", param.path)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _find_mixers(params: Sequence[Param]) -> set[Place]:
    """Finds attention and state-space layers by their parameters, whatever the modules' names.

    Attention has queries and keys, or keys and values; a critic's `value` alone is not attention.
    """
    queries: dict[Place, set[str]] = defaultdict(set)
    for param in params:
        if is_query(make_name(param.unit[-1])):
            queries[param.holder].add(param.unit[-1])
    attentions = {holder for holder, names in queries.items() if len(names) > 1}
    return attentions | {param.holder for param in params if is_decay(param.own)}


def _could_read(reader: Param, param: Param) -> bool:
    inputs, size = reader.inputs, param.outputs
    second = reader.matrix.second_input if reader.matrix is not None else 0
    if size == second or any(size == inputs * parts for parts in PARTS):
        return True
    spatial = param.kind == "convolution", reader.kind == "convolution"
    if spatial == (True, False) and reader.kind in ("linear", "matrix"):
        return size > 1 and inputs % size == 0  # flattened
    if spatial == (False, True) and param.kind in ("linear", "matrix"):
        return inputs > COLORS and size % inputs == 0  # unflattened
    return False


def _could_read_several(reader: Param, param: Param) -> bool:
    if (reader.kind, param.kind) != ("convolution", "convolution") or param.outputs <= COLORS:
        return False
    return any(param.outputs * parts == reader.inputs for parts in PARTS)


def _common_depth(params: Sequence[Param]) -> int:
    modules = [param.places[:-1] for param in params]
    levels = list(zip(*modules, strict=False))
    return next((depth for depth, names in enumerate(levels) if len(set(names)) > 1), len(levels))


def _pattern(param: Param) -> tuple[str, tuple[int, ...]]:
    return re.sub(r"\d+", "#", ".".join(param.places)), param.shape
