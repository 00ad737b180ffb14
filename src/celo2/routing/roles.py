"""Finds the role of each parameter in the network from layers, names, shapes and shared arrays.

The rules are ordered from the strongest evidence to the weakest: layer kinds, names, ties, shapes. Each rule
sees the parameters that earlier rules left open; a parameter that no rule claims is a hidden matrix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from celo2.routing import heads
from celo2.routing.names import (
    EXPERT_WORDS,
    GATE_WORDS,
    KERNEL_NAMES,
    LAYER_LISTS,
    Name,
    is_body,
    is_decay,
    is_lookup,
    is_norm,
    is_position,
    is_projection,
    is_query,
    is_router,
    is_token,
    is_vector,
    make_name,
)
from celo2.routing.network import Finding, Findings, Network
from celo2.routing.params import Param


def find_roles(network: Network) -> dict[Param, Finding]:
    """Finds the role of each parameter, as far as the evidence allows."""
    found: dict[Param, Finding] = {}
    for rule in RULES:
        found |= dict(rule(network, found))
    return {param: found.get(param) or _hidden(param) for param in network.params}


def by_shape(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields vectors and effective vectors."""
    del found
    for param in network.params:
        if param.rank <= 1:
            yield param, Finding("vector", f"rank {param.rank}")
        elif param.is_vector:
            yield param, Finding("vector", "no two axes longer than 1")
        elif param.is_complex:
            yield param, Finding("vector", "complex numbers")


def by_layer(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields parameters whose layer kind is known from the framework."""
    for param in _open(network, found):
        if param.kind == "norm":
            yield param, Finding("vector", f"norm, {param.layer}")
        elif param.kind == "embedding":
            yield param, Finding("embedding", f"embedding, {param.layer or param.own}")
        elif param.kind == "depthwise":
            yield param, Finding("vector", "depthwise convolution: a vector for each channel")


def by_name(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields parameters whose names are unambiguous.

    For parameters known to multiply their inputs, names only indicate whether they are routers.
    """
    for param in _open(network, found):
        if param.owner:
            continue
        if finding := _router_by_name(network, param) or _table_by_name(network, param):
            yield param, finding


def by_experts(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields routers: gates beside experts, and matrices on their inputs with one output per expert."""
    counts = _count_experts(network)
    for param in _open(network, found):
        if param.matrix is None or param.owner:
            continue
        sizes = (param.outputs, param.inputs)
        if sizes in counts[param.holder] and param.batch[-1:] != sizes[:1]:
            yield param, Finding("router", f"router of the {sizes[0]} experts beside it")
        elif gate := _gate_beside_experts(network, param):
            yield param, Finding("router", f"router, {gate} beside experts")


def by_tie(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields arrays that are an embedding under another name (tied heads)."""
    tables = {param.identity: param for param, finding in found.items() if finding.role == "embedding"}
    for param in network.params:
        source = tables.get(param.identity)
        role = found[param].role if param in found else "hidden"
        if source is not None and source is not param and role in ("hidden", "head"):
            yield param, Finding("head", f"tied to {source.path}")


def by_stack(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields rank-2 parameters that may be stacked vectors: all siblings have the same leading size."""
    stacked = {place for place, params in network.under.items() if _is_stack(params)}
    for param in _open(network, found):
        prefixes = {param.places[:length] for length in range(len(param.places))}
        told = param.kind not in ("matrix", "bare") or param.is_kernel or param.owner
        if param.rank != 2 or told or stacked.isdisjoint(prefixes):
            continue
        layers, size = param.shape
        if layers < size:
            reason = f"everything beside it has leading size {layers}: a vector for each layer?"
            yield param, Finding("vector", reason, decided=False)


def by_bare(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields parameters of unknown layers: tables if the first axis is 1, else undecided unless named."""
    for param in _open(network, found):
        if param.kind != "bare" or param.owner:
            continue
        if param.rank > 2 and param.shape[0] == 1:
            yield param, Finding("position", "a table: no layer's, and its first axis is 1")
        elif param.rank == 2 and not _is_called_matrix(param):
            yield param, Finding("embedding", "no layer's parameter: a matrix or a table?", decided=False)


def by_owner(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields adapters, which take the role of the parameter they adapt."""
    by_path = {param.path: param for param in network.params}
    for param in network.params:
        owner = by_path.get(param.owner) if param.owner else None  # a lone array has an empty path
        if owner is not None and not param.is_vector:
            of = found.get(owner) or _hidden(owner)
            adapted = of.role if of.decided else "hidden"
            yield param, Finding(adapted, f"adapter of {owner.path}: {of.reason}")


Rule = Callable[[Network, dict[Param, Finding]], Iterator[tuple[Param, Finding]]]
RULES: tuple[Rule, ...] = (
    by_shape,
    by_layer,
    by_name,
    by_experts,
    heads.by_name,
    by_tie,
    by_stack,
    by_bare,
    heads.by_vocabulary,
    heads.by_output,
    by_owner,
)


def _open(network: Network, found: Findings) -> list[Param]:
    return [param for param in network.params if param not in found]


def _hidden(param: Param) -> Finding:
    if param.matrix is not None:
        return Finding("hidden", param.matrix.note)
    return Finding("hidden", "hidden matrix" if param.rank == 2 else f"hidden, rank {param.rank}, as stored")


def _router_by_name(network: Network, param: Param) -> Finding | None:
    if param.kind in ("convolution", "recurrent", "attention"):
        return None
    for index in reversed(range(len(param.names))):
        name = param.names[index]
        if is_router(name):
            return Finding("router", f"router, {name}")
        if EXPERT_WORDS & name.words or network.starts_body(param, index):
            return None
    return None


def _table_by_name(network: Network, param: Param) -> Finding | None:
    """Finds tables and stacked vectors by name, unless the layer is known to multiply."""
    if param.kind not in ("matrix", "bare", "stack"):
        return None
    if is_vector(param.own):
        return Finding("vector", f"stacked vectors, {param.own}")
    near = [name for name in param.nearest if not is_body(name)]
    if name := next(filter(is_norm, param.nearest if param.own.text not in ("kernel", "w") else ()), None):
        return Finding("vector", f"stacked vectors, {name}")
    if is_decay(param.own):
        return Finding("vector", f"decays of a state-space layer, {param.own}")
    if name := next(filter(is_position, near), None):
        return Finding("position", f"positional table, {name}")
    if _is_token(param.own):
        return Finding("embedding", f"learned token, {param.own}")
    if is_lookup(param.own):
        return Finding("embedding", f"embedding, {param.own}")
    if param.kind == "stack":
        return None
    if name := _nearest_lookup(network, param):
        return Finding("embedding", f"embedding, {name}")
    if name := next(filter(_is_token, near), None):
        return Finding("embedding", f"learned token, {name}")
    return None


def _is_token(name: Name) -> bool:
    return is_token(name) and not is_query(name)


def _nearest_lookup(network: Network, param: Param) -> Name | None:
    for index in reversed(range(len(param.names))):
        name = param.names[index]
        if network.starts_body(param, index) or is_projection(name):
            return None
        if is_lookup(name):
            return name
    return None


def _count_experts(network: Network) -> dict[tuple[str, ...], set[tuple[int, int]]]:
    """Returns the `(experts, input size)` of the experts in each module, in a list or in stacks."""
    counts: dict[tuple[str, ...], set[tuple[int, int]]] = defaultdict(set)
    lists: dict[tuple[str, ...], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for param in network.matrices:
        if param.kind == "convolution":
            continue
        if param.kind == "stack" and param.batch:
            sizes = {(param.batch[-1], param.inputs), (param.batch[-1], param.outputs)}
            counts[param.holder] |= sizes
            counts[param.holder[:-1]] |= sizes
        for length, text in enumerate(param.places[:-1]):
            if not text.isdecimal() or not length or len(param.unit) <= length + 1:
                continue
            if not LAYER_LISTS & make_name(param.places[length - 1]).words:
                lists[param.places[:length]][text].add(param.inputs)
    for place, units in lists.items():
        first = next(iter(units.values()))
        if len(units) > 1 and all(sizes == first for sizes in units.values()):
            counts[place[:-1]] |= {(len(units), size) for size in first}
    return counts


def _gate_beside_experts(network: Network, param: Param) -> Name | None:
    """Finds a gate that chooses experts, unlike a gated MLP's gate, which has a sibling of its shape."""
    for length, text in enumerate(param.places):
        name = next(name for name in param.names if name.text == text and not name.is_class)
        if GATE_WORDS & name.words:
            beside = network.under[param.places[:length]]
            told = any(EXPERT_WORDS & other.words for one in beside for other in one.names)
            alone = sum(one.shape == param.shape for one in beside) == 1
            return name if told and alone else None
        if {"expert", "experts"} & name.words:
            return None
    return None


def _is_stack(params: list[Param]) -> bool:
    ranks = [param.rank for param in params]
    return min(ranks) > 1 and max(ranks) > 2 and len({param.shape[0] for param in params}) == 1


def _is_called_matrix(param: Param) -> bool:
    """Returns whether a bare parameter's name denotes a matrix: `weight`, `w1`, `in_proj_weight`."""
    words = param.own.words
    plain = {"up", "down", "in", "out", "gate", "kernel", "weights", "matrix", "lora", "mat"} | KERNEL_NAMES
    return is_projection(param.own) or is_query(param.own) or bool(plain & words) or len(param.own.text) <= 2
