"""From names, shapes and shared arrays to the part that each leaf plays in the network.

Every rule looks at the leaves that the rules before it left open; what none of them claims is a
hidden matrix.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from celo2.jax._leaves import Leaf
from celo2.jax._names import (
    Finding,
    Role,
    find_by_name,
    gate_index,
    has_experts,
    is_body,
    is_mlp,
    is_query,
    weak_head,
)

__all__ = ["find_roles"]

Findings = Iterator[tuple[Leaf, Finding]]


class Tree:
    """The leaves, what has been found of them, and what only all of them together can tell.

    Attributes:
        leaves: In the tree's order.
        found: The findings so far.
        depth: How many names all paths begin with.
        under: The leaves in each module, at any depth.
    """

    def __init__(self, leaves: Sequence[Leaf]):
        self.leaves = leaves
        self.found: dict[Leaf, Finding] = {}
        self.depth = _common_depth(leaves)
        self._alike = Counter(_pattern(leaf) for leaf in leaves)
        self.under: dict[str, list[Leaf]] = defaultdict(list)
        self._beside: dict[str, list[Leaf]] = defaultdict(list)
        for leaf in leaves:
            self._beside[leaf.module].append(leaf)
            for module in leaf.modules:
                self.under[module].append(leaf)

    def open(self) -> list[Leaf]:
        """Leaves without a finding."""
        return [leaf for leaf in self.leaves if leaf not in self.found]

    def having(self, role: Role) -> list[Leaf]:
        """Leaves found to play this part."""
        return [leaf for leaf, finding in self.found.items() if finding.role == role]

    def in_body(self, leaf: Leaf) -> bool:
        """Whether numbered layers have several like this leaf, or attention or a block holds it."""
        return self._alike[_pattern(leaf)] > 1 or any(map(is_body, leaf.parts[self.depth :]))

    def fan(self, leaf: Leaf) -> tuple[int, int]:
        """Input and output size of a matrix.

        In a module of one matrix and one bias the bias tells which is which. Elsewhere a `weight` is
        (out, in, …) as in Equinox and PyTorch, and any other matrix (…, in, out).
        """
        transposed = "weight" in leaf.parts[-1].words
        if leaf.rank == 2 and sorted(other.rank for other in self._beside[leaf.module]) == [1, 2]:
            (bias,) = (other.shape[0] for other in self._beside[leaf.module] if other.rank == 1)
            if leaf.shape.count(bias) == 1:
                transposed = leaf.shape[0] == bias
        return (leaf.shape[1], leaf.shape[0]) if transposed else (leaf.shape[-2], leaf.shape[-1])


def find_roles(leaves: Sequence[Leaf]) -> list[Finding]:
    """What each leaf is, as far as the evidence goes."""
    tree = Tree(leaves)
    for rule in RULES:
        tree.found.update(list(rule(tree)))
    return [tree.found.get(leaf) or _hidden(leaf) for leaf in leaves]


def by_rank(tree: Tree) -> Findings:
    """Vectors, and what is one in effect."""
    for leaf in tree.open():
        if leaf.rank <= 1:
            yield leaf, Finding("vector", f"rank {leaf.rank}")
        elif not leaf.is_matrix:
            yield leaf, Finding("vector", "no two axes longer than 1")
        elif leaf.is_complex:
            yield leaf, Finding("vector", "complex numbers")


def by_name(tree: Tree) -> Findings:
    """What the names say beyond doubt."""
    for leaf in tree.open():
        if finding := find_by_name(leaf):
            yield leaf, finding


def by_gate(tree: Tree) -> Findings:
    """Gates that choose experts. The gate of a gated MLP has a twin of its shape beside it."""
    for leaf in tree.open():
        if (index := gate_index(leaf)) is None:
            continue
        beside = tree.under[leaf.modules[index]]
        if any(map(has_experts, beside)) and sum(other.shape == leaf.shape for other in beside) == 1:
            yield leaf, Finding("router", f"router, name {leaf.parts[index].text!r} beside experts")


def by_tie(tree: Tree) -> Findings:
    """Arrays that are an embedding under another name."""
    embeddings = {leaf.identity: leaf for leaf in tree.having("embedding")}
    for leaf in [*tree.open(), *tree.having("head")]:
        if source := embeddings.get(leaf.identity):
            yield leaf, Finding("head", f"tied to {source.path}")


def by_stack(tree: Tree) -> Findings:
    """Rank 2, but perhaps one vector for each layer: everything beside it has the same leading size."""
    stacked = {module for module, leaves in tree.under.items() if _is_stack(leaves)}
    for leaf in tree.open():
        layers, *rest = leaf.shape
        called_weight = leaf.parts[-1].words & {"kernel", "weight", "weights", "w"}
        if len(rest) == 1 and layers < rest[0] and not called_weight and not stacked.isdisjoint(leaf.modules):
            reason = f"everything beside it has leading size {layers}: a vector for each layer?"
            yield leaf, Finding("vector", reason, decided=False)


def by_vocabulary(tree: Tree) -> Findings:
    """The one matrix besides an embedding that has the vocabulary as an axis."""
    if tree.having("head"):
        return
    lookups = [leaf for leaf in tree.having("embedding") if _is_lookup(leaf)]
    for size in sorted({leaf.shape[0] for leaf in lookups}):
        users = [leaf for leaf in tree.open() if size in leaf.shape[-2:]]
        for leaf in users:
            if leaf.rank != 2 or tree.in_body(leaf):
                continue
            if len(users) == 1:
                yield leaf, Finding("head", f"output head, {size} is the vocabulary")
            elif not is_mlp(leaf):
                reason = f"{size} is the vocabulary, but a hidden size too: an output head?"
                yield leaf, Finding("head", reason, decided=False)


def by_output(tree: Tree) -> Findings:
    """Matrices with an output that no other has: heads if so named, undecided if nothing reads it."""
    matrices = tree.open()
    if tree.having("head") or len(matrices) < 2 or _is_attention(matrices, tree.depth):
        return
    outputs = Counter(tree.fan(leaf)[1] for leaf in matrices)
    outputs.update(size for leaf in tree.having("embedding") for size in leaf.shape)
    unique = [leaf for leaf in matrices if outputs[tree.fan(leaf)[1]] == 1 and not tree.in_body(leaf)]
    named = [leaf for leaf in unique if len(leaf.parts) <= tree.depth + 2 and weak_head(leaf)]
    for leaf in named:
        part = weak_head(leaf)
        yield leaf, Finding("head", f"output head, name {part.text!r}" if part else "output head")
    if named:
        return
    inputs = {tree.fan(leaf)[0] for leaf in matrices}
    last = max(matrices, key=_natural_order)
    for leaf in unique:
        size = tree.fan(leaf)[1]
        if leaf.rank == 2 and (size not in inputs or leaf is last):
            reason = f"no other matrix has its {size} outputs: an output head?"
            yield leaf, Finding("head", reason, decided=False)


RULES: tuple[Callable[[Tree], Findings], ...] = (
    by_rank,
    by_name,
    by_gate,
    by_tie,
    by_stack,
    by_vocabulary,
    by_output,
)


def _hidden(leaf: Leaf) -> Finding:
    return Finding("hidden", "hidden matrix" if leaf.rank == 2 else f"hidden, rank {leaf.rank}")


def _common_depth(leaves: Sequence[Leaf]) -> int:
    modules = [leaf.path.split("/")[:-1] for leaf in leaves]
    levels = list(zip(*modules, strict=False))
    return next((depth for depth, names in enumerate(levels) if len(set(names)) > 1), len(levels))


def _pattern(leaf: Leaf) -> tuple[str, tuple[int, ...]]:
    return re.sub(r"\d+", "#", leaf.path), leaf.shape


def _natural_order(leaf: Leaf) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", leaf.path)]


def _is_lookup(leaf: Leaf) -> bool:
    """Whether an embedding is a table (entries, width) rather than a projection of patches, say."""
    return leaf.rank == 2 and leaf.shape[0] > leaf.shape[1] and leaf.parts[-1].text != "kernel"


def _is_stack(leaves: Sequence[Leaf]) -> bool:
    ranks = [leaf.rank for leaf in leaves]
    return min(ranks) > 1 and max(ranks) > 2 and len({leaf.shape[0] for leaf in leaves}) == 1


def _is_attention(matrices: Sequence[Leaf], depth: int) -> bool:
    return any(is_query(leaf.parts[depth]) for leaf in matrices)
