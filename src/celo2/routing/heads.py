"""Finds output heads by module names, by the vocabulary, and by outputs that no layer reads.

A module called `head` or `classifier` may also contain hidden layers (as in VGG): its heads are the matrices
whose output no other matrix in it reads. Nothing here depends on wrappers or the order of registration, since
only numbered layers (`0`, `2`, `4`) have an order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from celo2.routing.names import (
    MLP_WORDS,
    Name,
    is_decoder,
    is_head,
    is_output,
    is_position,
)
from celo2.routing.network import Finding, Findings, Network, natural_order
from celo2.routing.params import Param

# Things other than tokens for which a table may have entries.
COUNTED = {"type", "segment", "mask", "query", "queries", "object"}
COUNTED |= {"register", "registers", "latents", "slots"}


def by_name(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields the last matrices of modules named as heads."""
    members = {}
    for param in _open(network, found):
        if name := _head_name(network, param):
            members[param] = name
    tables = {param.identity for param, finding in found.items() if finding.role == "embedding"}
    tied = [param for param in _open(network, found) if param.identity in tables and param not in members]
    for param, name in members.items():
        if not any(_comes_later(reader, param) for reader in network.readers(param, [*members, *tied])):
            yield param, Finding("head", f"output head, {name}")


def by_vocabulary(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields the matrix outside the body that has one output for each entry of an embedding."""
    if network.is_part:
        return
    tables = [param for param, finding in found.items() if finding.role == "embedding"]
    vocabularies = {param.shape[-2] for param in tables if param.rank >= 2 and not _counts_others(param)}
    heads = {param for param, finding in found.items() if finding.role == "head"}
    vocabularies -= {param.outputs for param in heads}
    for param in _candidates(network, found):
        size = param.outputs
        if size not in vocabularies:
            continue
        is_read = any(reader.inputs == size for reader in _layers(network, found) if reader is not param)
        twins = [other for other in _candidates(network, found) if other is not param]
        if not is_read and not any(other.outputs == size for other in twins):
            yield param, Finding("head", f"output head, {size} is the vocabulary")
        elif not any(MLP_WORDS & name.words for name in param.names):
            reason = f"{size} is the vocabulary, but a hidden size too: an output head?"
            yield param, Finding("head", reason, decided=False)


def by_output(network: Network, found: Findings) -> Iterator[tuple[Param, Finding]]:
    """Yields projections whose output nothing reads, and the last one of the outermost chain of layers."""
    tables = [param for param, finding in found.items() if finding.role in ("embedding", "position")]
    network.add_widths({param.shape[-1] for param in tables if param.shape})
    layers = _layers(network, found)
    if network.is_part or len(layers) + len(tables) < 2:
        return
    last = _last_of_chain(network, layers)
    for param in _candidates(network, found):
        readers = list(network.readers(param, layers, concatenated=True))
        if not readers and not network.is_width(param.outputs):
            yield param, Finding("head", f"output head, no layer reads its {param.outputs} outputs")
        elif _is_read_by_head(readers, found):
            continue
        elif name := _ends_decoder(param, readers) or _is_named_output(network, param, readers, layers):
            yield param, Finding("head", f"output head, {name}")
        elif param is last:
            yield param, Finding("head", "output head, the last layer")


def _counts_others(param: Param) -> bool:
    """Returns whether a table has an entry per position, kind or slot rather than per token."""
    other = any(is_position(name) or COUNTED & name.words for name in param.nearest)
    return other or param.kind == "bare"


def _open(network: Network, found: Findings) -> list[Param]:
    return [param for param in network.matrices if param not in found]


def _layers(network: Network, found: Findings) -> list[Param]:
    """Returns the matrices that may read layers' outputs: all but those found to be tables."""
    tables = ("vector", "embedding", "position")
    return [param for param in network.matrices if param not in found or found[param].role not in tables]


def _candidates(network: Network, found: Findings) -> list[Param]:
    """Returns undecided projections outside the body: single matrices of linear layers and convolutions."""
    return [
        param
        for param in _open(network, found)
        if param.kind in ("linear", "matrix", "convolution")
        and not network.is_repeated(param)
        and not network.in_body(param)
    ]


def _head_name(network: Network, param: Param) -> Name | None:
    """Returns the outermost name on the path, up to the body, that names a head.

    Names that hold the whole network do not count: a trainer's `LitClassifier`, its attribute `classifier`.
    """
    found, place = None, len(param.places)
    whole = network.depth if not network.is_part and network.depth < len(param.unit) else -1
    for index in reversed(range(len(param.names))):
        name = param.names[index]
        if place <= whole or network.starts_body(param, index):
            return found
        if is_head(name):
            found = name
        place -= not name.is_class
    return found


def _comes_later(reader: Param, param: Param) -> bool:
    """Returns whether a possible reader follows a layer, if each could read the other's output."""
    if param.inputs != reader.outputs:
        return True
    if reader.holder != param.holder:
        return False
    return natural_order(reader) > natural_order(param)


def _is_read_by_head(readers: Sequence[Param], found: Findings) -> bool:
    return any(reader in found and found[reader].role == "head" for reader in readers)


def _ends_decoder(param: Param, readers: Sequence[Param]) -> Name | None:
    """Returns the name of a decoder in which nothing reads this parameter's output."""
    plain = [name for name in param.names if not name.is_class]
    for length, name in enumerate(plain[: len(param.unit)], start=1):
        if is_decoder(name):
            inside = [reader for reader in readers if reader.places[:length] == param.places[:length]]
            return None if any(_comes_later(reader, param) for reader in inside) else name
    return None


def _is_named_output(
    network: Network, param: Param, readers: Sequence[Param], layers: Sequence[Param]
) -> Name | None:
    """Returns a name such as `out` near the root, where possible readers may equally read the data."""
    near = [name for name in param.names if not name.is_class][network.depth : len(param.unit)][:2]
    name = next(filter(is_output, near), None)
    if name is None:
        return None
    is_read = any(reader.inputs == param.outputs for reader in readers)
    is_made = any(layer.outputs == param.outputs for layer in layers if layer is not param)
    return None if is_read and is_made else name


def _last_of_chain(network: Network, chain: Sequence[Param]) -> Param | None:
    """Returns the last matrix of a network that is a single numbered chain of layers, which is its output."""
    depth = network.depth
    if len(chain) < 2 or any(len(param.unit) != depth + 1 for param in chain):
        return None
    _, *later = sorted(chain, key=natural_order)  # Haiku's first has no number
    return later[-1] if all(param.unit[-1][-1:].isdecimal() for param in later) else None
